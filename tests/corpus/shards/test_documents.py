import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_service.corpus.shards.documents import (
    BLANK,
    EXCERPT_CHARACTERS,
    HALF_A_PAIR,
    NO_COLUMN,
    NO_GROUP,
    NO_TOKENS,
    NOT_A_STRING,
    NOT_TOKENS,
    NOT_UTF8,
    Columns,
    Document,
    Row,
    SetAside,
    document_of,
)

REASONS = {BLANK, HALF_A_PAIR, NO_COLUMN, NO_GROUP, NO_TOKENS, NOT_A_STRING, NOT_TOKENS, NOT_UTF8}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
all_columns = st.builds(
    Columns,
    text=st.just("text"),
    tokens=st.none() | st.just("ids"),
    domain=st.none() | st.just("topic"),
    group=st.none() | st.just("kind"),
)


def reason_of(fields: dict[str, object], columns: Columns | None = None) -> str:
    result = document_of(Row(7, fields), columns or Columns(), "web")
    assert isinstance(result, SetAside)
    assert result.row == 7
    return result.reason


@given(st.dictionaries(st.sampled_from(["text", "ids", "topic", "kind"]), anything), all_columns)
def test_every_row_gives_a_sound_document_or_a_reason(fields: dict[str, object], columns: Columns) -> None:
    result = document_of(Row(3, fields), columns, "web")
    if isinstance(result, SetAside):
        assert result.reason in REASONS
        assert len(result.excerpt) <= EXCERPT_CHARACTERS
        assert result.excerpt.isprintable()
        return
    assert result.domain.encode()
    assert (result.group is None) == (columns.group is None)
    assert result.group is None or result.group.encode()
    if isinstance(result.content, str):
        assert result.content.encode().strip()
    else:
        assert result.content.dtype == np.int64
        assert result.content.ndim == 1
        assert len(result.content) >= 1
        assert (result.content >= 0).all()


@given(st.text().filter(lambda text: text.strip() and not text.startswith("\ufeff")))
def test_text_comes_out_as_it_stands_from_a_string_and_from_bytes(text: str) -> None:
    for value in (text, text.encode()):
        assert document_of(Row(0, {"text": value}), Columns(), "web") == Document("web", None, text)


@pytest.mark.parametrize("value", [None, 7, True, 1.5, ["a"], {"a": 1}])
def test_what_is_no_text_is_set_aside(value: object) -> None:
    assert reason_of({"text": value}) == NOT_A_STRING


def test_text_that_cannot_be_used_says_why() -> None:
    assert reason_of({"text": " \n\u2003"}) == BLANK
    assert reason_of({"text": b""}) == BLANK
    assert reason_of({"text": "half an emoji \ud83d"}) == HALF_A_PAIR
    assert reason_of({"text": b"\xff\xfe"}) == NOT_UTF8
    assert reason_of({"other": "x"}) == NO_COLUMN


def test_the_shard_stands_in_where_the_domain_is_empty() -> None:
    for domain, expected in (("a", "a"), (0, "0"), (None, "web"), ("", "web"), (b"fr", "fr")):
        document = document_of(Row(0, {"text": "x", "topic": domain}), Columns(domain="topic"), "web")
        assert document == Document(expected, None, "x")


def test_a_label_that_no_table_can_hold_sets_its_row_aside() -> None:
    assert reason_of({"text": "x", "topic": "\ud83d"}, Columns(domain="topic")) == HALF_A_PAIR
    assert reason_of({"text": "x", "topic": b"\xff"}, Columns(domain="topic")) == NOT_UTF8
    assert reason_of({"text": "x"}, Columns(domain="topic")) == NO_COLUMN


def test_a_group_is_the_value_as_a_string_and_must_be_there() -> None:
    for value, expected in (("a", "a"), (3, "3"), (False, "False"), (0.5, "0.5")):
        assert document_of(Row(0, {"text": "x", "kind": value}), Columns(group="kind"), "web") == Document(
            "web", expected, "x"
        )
    for value in (None, ""):
        assert reason_of({"text": "x", "kind": value}, Columns(group="kind")) == NO_GROUP


@pytest.mark.parametrize("value", [[0, 5, 2**40], np.array([0, 5, 2**40]), np.array([0, 5, 2**40], dtype=np.uint64)])
def test_token_ids_are_taken_as_they_are_and_text_is_not_asked_for(value: object) -> None:
    document = document_of(Row(0, {"ids": value}), Columns(tokens="ids"), "web")
    assert isinstance(document, Document)
    assert isinstance(document.content, np.ndarray)
    assert document.content.dtype == np.int64
    assert document.content.tolist() == [0, 5, 2**40]


@pytest.mark.parametrize(
    "value",
    [
        None,
        "1 2",
        7,
        {"a": 1},
        [1, -1],
        [1, 2.0],
        [1, None],
        [1, True],
        [[1]],
        [2**63],
        np.array([1, -1]),
        np.array([1.0]),
        np.array([2**63], dtype=np.uint64),
    ],
)
def test_what_are_no_token_ids_is_set_aside(value: object) -> None:
    assert reason_of({"ids": value, "text": "x"}, Columns(tokens="ids")) == NOT_TOKENS


def test_an_empty_list_of_token_ids_is_set_aside() -> None:
    assert reason_of({"ids": []}, Columns(tokens="ids")) == NO_TOKENS
    assert reason_of({"ids": np.array([], dtype=np.int32)}, Columns(tokens="ids")) == NO_TOKENS


@pytest.mark.parametrize("value", ["\x1b[31m" + "\u2028" * 200, b"\xff" * 1000, list(range(10**6)), "\ud83d" * 100])
def test_an_excerpt_is_short_and_printable(value: object) -> None:
    columns = Columns(tokens="ids", group="no") if isinstance(value, list) else Columns(group="no")
    result = document_of(Row(0, {"text": value, "ids": value}), columns, "web")
    assert isinstance(result, SetAside)
    assert 0 < len(result.excerpt) <= EXCERPT_CHARACTERS
    assert result.excerpt.isprintable()
