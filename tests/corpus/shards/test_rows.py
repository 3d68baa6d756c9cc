"""Shards of every kind: what is read from them, what is set aside, and what is refused."""

import gzip
import json
import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.corpus.shards import rows as readers
from replay_service.corpus.shards.documents import (
    BLANK,
    HALF_A_PAIR,
    NO_COLUMN,
    NO_MEMBER,
    NOT_A_STRING,
    NOT_JSON,
    NOT_TOKENS,
    NOT_UTF8,
)
from replay_service.corpus.shards.sources import (
    Columns,
    Document,
    Reading,
    SetAside,
    Shard,
    check_readable,
    find_shards,
    read_documents,
)
from replay_service.errors import UnusableSource
from tests.corpus.shard_files import (
    ARCHIVES,
    COLUMNED,
    LINES,
    TABLES,
    archive,
    compressed,
    read,
    reasons,
    texts,
    write,
    write_table,
)

ROWS = [{"text": "one", "topic": "a"}, {"text": None, "topic": "b"}, {"text": " \n", "topic": None}]


@pytest.mark.parametrize("name", COLUMNED)
def test_rows_without_usable_text_are_set_aside_and_the_others_read(tmp_path: Path, name: str) -> None:
    assert read(write(tmp_path / name, ROWS)) == [
        Document("web", None, "one"),
        SetAside(1, NOT_A_STRING, "None"),
        SetAside(2, BLANK, " \\n"),
    ]


@pytest.mark.parametrize("name", COLUMNED)
def test_columns_tell_domain_and_group(tmp_path: Path, name: str) -> None:
    rows = [{"text": "x", "topic": topic, "kind": kind} for topic, kind in (("a", 1), ("b", 0), (None, 1))]
    columns = Columns(domain="topic", group="kind")
    assert read(write(tmp_path / name, rows), columns) == [
        Document("a", "1", "x"),
        Document("b", "0", "x"),
        Document("web", "1", "x"),
    ]


@pytest.mark.parametrize("name", COLUMNED)
def test_columns_are_told_apart_by_name_and_may_serve_twice(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{"z": "d", "content": "hello", "text": "not this", "a": "g"}])
    assert read(path, Columns(text="content", domain="z", group="a")) == [Document("d", "g", "hello")]
    assert read(path, Columns(text="content", domain="z", group="z")) == [Document("d", "d", "hello")]


@pytest.mark.parametrize("name", COLUMNED)
def test_ready_made_token_ids_are_read_without_any_text(tmp_path: Path, name: str) -> None:
    rows = [{"ids": [5, 0, 7]}, {"ids": [1]}, {"ids": [3, -1]}, {"ids": None}]
    found = read(write(tmp_path / name, rows), Columns(tokens="ids"))
    assert [each.content.tolist() for each in found if isinstance(each, Document)] == [[5, 0, 7], [1]]  # type: ignore[union-attr]
    assert [(each.row, each.reason) for each in found if isinstance(each, SetAside)] == [
        (2, NOT_TOKENS),
        (3, NOT_TOKENS),
    ]


@settings(max_examples=20, deadline=None)
@given(documents=st.lists(st.text(st.characters(codec="utf-8"), min_size=1).map(lambda text: f"x{text}"), min_size=1))
@pytest.mark.parametrize("name", COLUMNED)
def test_what_was_written_is_read_in_order(
    tmp_path_factory: pytest.TempPathFactory, name: str, documents: list[str]
) -> None:
    path = tmp_path_factory.mktemp("any") / name
    assert texts(write(path, [{"text": text} for text in documents])) == documents


LIST_TYPES = [
    pa.list_(pa.int32()),
    pa.large_list(pa.int64()),
    pa.list_(pa.uint16(), 2),
    pa.list_(pa.uint64()),
    pa.list_view(pa.int8()),
]


@pytest.mark.parametrize("type_", LIST_TYPES, ids=str)
@pytest.mark.parametrize("name", ["web.arrow", "web.stream.ipc"])
def test_token_ids_may_have_any_integer_type(tmp_path: Path, name: str, type_: pa.DataType) -> None:
    table = pa.table({"ids": pa.array([[1, 2], [3, 127], None, [4, None]], type_)})
    found = read(write_table(tmp_path / name, table, rows_a_batch=3), Columns(tokens="ids"))
    assert [each.content.tolist() for each in found if isinstance(each, Document)] == [[1, 2], [3, 127]]  # type: ignore[union-attr]
    assert reasons(tmp_path / name, Columns(tokens="ids")) == [(2, NOT_TOKENS), (3, NOT_TOKENS)]


TEXT_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int8(), pa.string())]


@pytest.mark.parametrize("type_", TEXT_TYPES, ids=str)
@pytest.mark.parametrize("name", ["web.arrow", "web.stream.ipc", "web.parquet"])
def test_text_may_have_any_type_that_holds_text(tmp_path: Path, name: str, type_: pa.DataType) -> None:
    table = pa.table({"text": pa.array(["één", "", None, "één"], pa.string()).cast(type_)})
    found = read(write_table(tmp_path / name, table))
    assert [each.content if isinstance(each, Document) else each.excerpt for each in found] == [
        "één",
        "",
        "None",
        "één",
    ]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_row_that_is_not_utf8_is_set_aside(tmp_path: Path, name: str) -> None:
    text = pa.array([b"good", b"bad \xff", b"fine"]).view(pa.string())
    path = write_table(tmp_path / name, pa.table({"text": text}))
    assert reasons(path) == [(1, NOT_UTF8)]
    assert len(read(path)) == 3


def test_blank_lines_are_passed_over_but_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\r\n\n  \n{"text": 1}\n{"text": "y"}')
    assert [each.content for each in read(tmp_path) if isinstance(each, Document)] == ["x", "y"]
    assert reasons(tmp_path) == [(3, NOT_A_STRING)]


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_is_no_row_is_set_aside_and_the_others_read(tmp_path: Path, name: str) -> None:
    lines = [
        (b'{"text": "half a pair \\ud83d"}', HALF_A_PAIR),
        (b'["a list"]', NOT_JSON),
        (b'"a string"', NOT_JSON),
        (b'{"text": ', NOT_JSON),
        (b'{"other": "x"}', NO_COLUMN),
        (b'{"text": "\xff\xfe"}', NOT_UTF8),
        (b'{"text": "x", "n": ' + b"1" * 5000 + b"}", NOT_JSON),
        (b"[" * 100_000, NOT_JSON),
    ]
    content = b'{"text": "first"}\n' + b"\n".join(line for line, _ in lines) + b'\n{"text": "last"}\n'
    (tmp_path / name).write_bytes(compressed(tmp_path / name, content))
    assert reasons(tmp_path) == [(number, reason) for number, (_, reason) in enumerate(lines, start=1)]
    assert [each.content for each in read(tmp_path) if isinstance(each, Document)] == ["first", "last"]


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 1000)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 2000}))
    with pytest.raises(UnusableSource, match="a line of more than 1000 bytes"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["story.txt", "story.md", "story.txt.gz", "story.md.zst"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    text = "été\n\n\nover several lines\n"
    (tmp_path / name).write_bytes(compressed(tmp_path / name, text.encode()))
    assert read(tmp_path / name) == [Document("story", None, text)]
    assert read(tmp_path / name, Columns(domain="topic")) == [Document("story", None, text)]


def test_a_text_file_that_is_blank_or_not_utf8_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.txt").write_bytes(b"")
    assert read(tmp_path) == [SetAside(0, NOT_UTF8, "\\xff\\xfe\\x00"), SetAside(0, BLANK, "")]


@pytest.mark.parametrize("name", ["story.txt", "story.txt.gz"])
def test_a_long_text_is_one_document_in_pieces(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_LONG_TEXT_BYTES", 1000)
    monkeypatch.setattr(readers, "_CHUNK_BYTES", 777)
    text = "été " * 200_000
    (tmp_path / name).write_bytes(compressed(tmp_path / name, b"\xef\xbb\xbf" + text.encode()))
    pieces = [each for each in read(tmp_path) if isinstance(each, Document)]
    assert "".join(str(piece.content) for piece in pieces) == text
    assert len(pieces) > 2
    assert [piece.begins for piece in pieces] == [True, *[False] * (len(pieces) - 1)]
    assert [piece.ends for piece in pieces] == [*[False] * (len(pieces) - 1), True]


@pytest.mark.parametrize("end", [b"\xff", b"\xc3"])
def test_a_long_text_is_taken_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes) -> None:
    monkeypatch.setattr(readers, "_LONG_TEXT_BYTES", 1000)
    (tmp_path / "a.txt").write_bytes(b"word " * 300 + end)
    assert reasons(tmp_path) == [(0, NOT_UTF8)]
    (tmp_path / "a.txt").write_bytes(b" \n" * 1000)
    assert reasons(tmp_path) == [(0, BLANK)]


@pytest.mark.parametrize("name", COLUMNED)
def test_a_shard_whose_first_rows_hold_another_type_is_refused_at_its_head(tmp_path: Path, name: str) -> None:
    chat = [{"role": "user", "content": "hello"}]
    write(tmp_path / name, [{"messages": chat, "ids": ["a"]}] * 3)
    (shard,) = find_shards(tmp_path)
    with pytest.raises(UnusableSource, match=r"row 0: the text is not a string: .*apply_chat_template"):
        check_readable(shard, Columns(text="messages"))
    with pytest.raises(UnusableSource, match=r"row 0: the token ids are not .*name another column"):
        check_readable(shard, Columns(tokens="ids"))


@pytest.mark.parametrize("name", COLUMNED)
def test_a_shard_that_begins_without_text_is_not_refused_for_it(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, [{"text": None}, {"text": " "}, {"text": "at last"}])
    (shard,) = find_shards(tmp_path)
    check_readable(shard, Columns())


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_members_of_a_sample_are_those_with_its_key(tmp_path: Path, name: str) -> None:
    members = [
        ("en/", b""),
        ("en/001.jpg", b"\xff" * 10_000),
        ("en/001.txt", b"a caption"),
        ("en/001.json", b'{"topic": "t"}'),
        ("en/001.cls.txt", b"7"),
        ("fr/001.JSON", '{"text": "une légende", "topic": "u"}'.encode()),
        ("fr/._001.json", b"what macOS adds"),
        ("fr/002.txt", b"alone"),
        ("fr/003.png", b"no text"),
        ("fr/README", b"none either"),
        ("fr/004.json", b"not json"),
        ("fr/005.txt", b"\xff"),
    ]
    (tmp_path / name).write_bytes(compressed(tmp_path / name, archive(members)))
    assert [each.content for each in read(tmp_path) if isinstance(each, Document)] == [
        "a caption",
        "une légende",
        "alone",
    ]
    assert read(tmp_path)[3:] == [
        SetAside(3, NO_MEMBER, "fr/003"),
        SetAside(4, NO_MEMBER, "fr/README"),
        SetAside(5, NOT_JSON, "not json"),
        SetAside(6, NOT_UTF8, "\\xff"),
    ]
    with_topic = read(tmp_path, Columns(domain="topic"))
    assert with_topic[:2] == [Document("t", None, "a caption"), Document("u", None, "une légende")]
    assert with_topic[2] == SetAside(2, NO_COLUMN, "{'text': b'alone'}")


def cut(content: bytes, part: float) -> bytes:
    return content[: int(len(content) * part)]


def many() -> list[dict[str, Any]]:
    """Rows that do not compress away."""
    rng = random.Random(0)
    return [{"text": f"document {rng.getrandbits(256):x}"} for _ in range(1000)]


@pytest.mark.parametrize("part", [0.3, 0.9, 0.98])
@pytest.mark.parametrize(
    "name", [*(name for name in COLUMNED if name not in ("web.jsonl", "web.json", "web.ndjson")), "web.txt.gz"]
)
def test_a_shard_that_breaks_off_is_named(tmp_path: Path, name: str, part: float) -> None:
    path = write(tmp_path / name, many())
    path.write_bytes(cut(path.read_bytes(), part))
    with pytest.raises(UnusableSource, match=f"shard {path} cannot be read"):
        read(path)


def with_byte(content: bytes, position: int, byte: int) -> bytes:
    return content[:position] + bytes([byte]) + content[position + 1 :]


GZIPPED = gzip.compress(b'{"text": "x"}\n' * 1000, mtime=0)
TWO_MEMBERS = archive([("1.txt", b"x"), ("2.txt", b"y")])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b""),
        ("a.parquet", b"PAR1 and then nothing"),
        ("a.arrow", b""),
        ("a.arrow", b"ARROW1\0\0 and then nothing"),
        ("a.arrow", b"neither of the two"),
        ("a.jsonl.gz", b"no gzip at all"),
        ("a.jsonl.gz", with_byte(GZIPPED, 10, 0x07)),
        ("a.jsonl.gz", with_byte(GZIPPED, -5, 0x07)),
        ("a.jsonl.zst", b"no zstd at all"),
        ("a.tar", b""),
        ("a.tar", b"no tar" * 1000),
        ("a.tar", with_byte(TWO_MEMBERS, 1024 + 5, 0x07)),
        ("a.tar", TWO_MEMBERS[:1024]),
        ("a.tar.gz", gzip.compress(TWO_MEMBERS, mtime=0)[:-4]),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnusableSource, match=str(tmp_path / name)):
        read(tmp_path / name)


def test_the_retired_feather_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.feather").write_bytes(b"FEA1" + b"\0" * 100)
    with pytest.raises(UnusableSource, match="first Feather version"):
        read(tmp_path)


def test_a_parquet_that_is_damaged_inside_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"text": f"document {i * i}"} for i in range(1000)])
    content = bytearray(path.read_bytes())
    content[4:400] = b"\xff" * 396
    path.write_bytes(content)
    with pytest.raises(UnusableSource, match=str(path)):
        read(path)


@pytest.mark.parametrize("name", ["a.arrow", "a.stream.ipc"])
def test_arrow_offsets_that_reach_past_the_text_are_refused(tmp_path: Path, name: str) -> None:
    path = write_table(tmp_path / name, pa.table({"text": ["aaaa", "bbbb", "cccc"]}), rows_a_batch=3)
    sound = struct.pack("<4i", 0, 4, 8, 12)
    assert path.read_bytes().count(sound) == 1
    path.write_bytes(path.read_bytes().replace(sound, struct.pack("<4i", 0, 4, 2**30, 12)))
    with pytest.raises(UnusableSource, match=str(path)):
        read(path)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_with_two_columns_of_the_name_is_refused(tmp_path: Path, name: str) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pytest.raises(UnusableSource, match=r"more than one column 'text' \(its columns: text, text\)"):
        read(write_table(tmp_path / name, table))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_without_the_column_is_refused_as_it_is_read(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS)
    with pytest.raises(UnusableSource, match=rf"{path} has no column 'body' \(its columns: text, topic\)"):
        read(path, Columns(text="body"))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.stream.ipc", "a.jsonl", "a.jsonl.zst", "a.tar"])
def test_reading_takes_less_memory_than_the_shard_has_bytes(tmp_path: Path, name: str) -> None:
    text = np.random.default_rng(0).bytes(1 << 19).hex()
    path = write(tmp_path / name, [{"text": f"{i}{text[i : i + 8000]}"} for i in range(10_000)])
    (shard,) = find_shards(path)
    arrow_before, arrow_most = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    for document in read_documents(shard, Columns()):
        assert isinstance(document, Document)
        arrow_most = max(arrow_most, pa.total_allocated_bytes() - arrow_before)
    _, python_most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert python_most + arrow_most < 0.75 * 10_000 * 8000


def test_an_unknown_kind_cannot_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        list(read_documents(Shard(str(tmp_path), "csv", "d", "a", "1"), Columns()))


def test_a_parquet_of_many_row_groups_is_counted_through(tmp_path: Path) -> None:
    table = pa.table({"text": [f"x{i}" if i % 3 else "" for i in range(1000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=70)
    assert [row for row, _ in reasons(tmp_path)] == list(range(0, 1000, 3))


# How far a shard has been read


def positions(path: Path, columns: Columns | None = None) -> list[int]:
    """The position in the shard with each of its documents."""
    (shard,), reading = find_shards(path), Reading()
    return [reading.position for _ in read_documents(shard, columns or Columns(), reading)]


@pytest.mark.parametrize("name", COLUMNED)
def test_the_position_rises_with_the_documents_to_the_end_of_the_shard(tmp_path: Path, name: str) -> None:
    texts = [f"{number} {random.Random(number).randbytes(500).hex()}" for number in range(400)]
    path = write(tmp_path / name, [{"text": each} for each in texts])
    found, num_bytes = positions(path), path.stat().st_size
    assert found == sorted(found)
    assert found[-1] <= num_bytes
    assert found[-1] > 0.9 * num_bytes
    assert 0.2 * num_bytes < found[200] < 0.8 * num_bytes


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_the_position_rises_within_a_long_text(tmp_path: Path, name: str) -> None:
    text = " ".join(random.Random(0).randbytes(20).hex() for _ in range(150_000))
    (tmp_path / name).write_bytes(compressed(tmp_path / name, text.encode()))
    found, num_bytes = positions(tmp_path / name), (tmp_path / name).stat().st_size
    assert found == sorted(found)
    assert len(set(found)) > 3
    assert (found[0] < 0.5 * num_bytes, found[-1]) == (True, num_bytes)


def test_the_position_rises_within_one_batch_of_a_table(tmp_path: Path) -> None:
    table = pa.table({"text": [f"text {number}" for number in range(5000)]})
    path = write_table(tmp_path / "a.arrow", table, rows_a_batch=5000)
    assert len(set(positions(path))) == 5000
