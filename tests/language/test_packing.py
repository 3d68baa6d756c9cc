from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.language.packing import MIN_LENGTH, Ends, PackedRows, Packer, id_dtype, pack

SEPARATOR = 0
ENDS = Ends(SEPARATOR)
documents = st.lists(st.lists(st.integers(1, 299), max_size=25), max_size=10)
seq_lens = st.integers(2, 16)
pure = settings(max_examples=100, deadline=None)


def packed(documents: list[list[int]], seq_len: int) -> PackedRows:
    return pack(documents, seq_len, ENDS, id_dtype(300))


def unpacked(rows: PackedRows) -> list[int]:
    return [token for ids, length in zip(rows.input_ids, rows.length, strict=True) for token in ids[:length].tolist()]


def laid_end_to_end(documents: list[list[int]]) -> list[int]:
    return [token for document in documents for token in [*document, SEPARATOR]]


@given(documents, seq_lens)
@pure
def test_every_token_stands_in_one_row_in_order_but_for_a_lone_last_separator(
    documents: list[list[int]], seq_len: int
) -> None:
    line, tokens = laid_end_to_end(documents), unpacked(packed(documents, seq_len))
    assert tokens == line[: len(tokens)]
    lost = line[len(tokens) :]
    assert lost in ([], [SEPARATOR])
    assert not lost or len(line) % seq_len == 1


@given(documents, seq_lens)
@pure
def test_every_row_predicts_something_and_all_but_the_last_are_full(documents: list[list[int]], seq_len: int) -> None:
    rows = packed(documents, seq_len)
    assert rows.input_ids.shape == (len(rows), seq_len)
    assert ((rows.length >= MIN_LENGTH) & (rows.length <= seq_len)).all()
    assert (rows.length[:-1] == seq_len).all()


@given(documents, seq_lens)
@pure
def test_padding_is_the_separator_and_types_are_as_stated(documents: list[list[int]], seq_len: int) -> None:
    rows = packed(documents, seq_len)
    assert rows.input_ids.dtype == np.uint16
    assert rows.length.dtype == np.int32
    if len(rows):
        assert (rows.input_ids[-1, rows.length[-1] :] == SEPARATOR).all()


def test_documents_are_closed_by_the_separator_and_cross_rows() -> None:
    rows = packed([[1, 2, 3], [4], [5, 6]], 4)
    assert rows.input_ids.tolist() == [[1, 2, 3, 0], [4, 0, 5, 6]]
    assert rows.length.tolist() == [4, 4]


def test_a_short_last_row_is_padded() -> None:
    rows = packed([[1, 2, 3], [4]], 4)
    assert rows.input_ids.tolist() == [[1, 2, 3, 0], [4, 0, 0, 0]]
    assert rows.length.tolist() == [4, 2]


@pytest.mark.parametrize("documents", [[], [[]]])
def test_nothing_to_predict_packs_into_no_row(documents: list[list[int]]) -> None:
    rows = packed(documents, 8)
    assert rows.input_ids.shape == (0, 8)
    assert len(rows) == 0


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(256, np.uint8), (257, np.uint16), (65_536, np.uint16), (65_537, np.uint32)]
)
def test_ids_take_the_narrowest_type_that_holds_the_vocabulary(vocab_size: int, dtype: type) -> None:
    assert id_dtype(vocab_size) == dtype
    rows = pack([[vocab_size - 1]], 2, Ends(vocab_size - 2), id_dtype(vocab_size))
    assert rows.input_ids.tolist() == [[vocab_size - 1, vocab_size - 2]]


def packed_in_parts(documents: list[list[int]], cuts: list[int], seq_len: int) -> PackedRows:
    """What a packer makes of the documents when it is given those between neighbouring cuts at once."""
    packer = Packer(seq_len, ENDS, id_dtype(300))
    bounds = [0, *sorted(min(cut, len(documents)) for cut in cuts), len(documents)]
    parts = [packer.add(documents[first:stop]) for first, stop in pairwise(bounds)]
    parts.append(packer.finish())
    return PackedRows(
        np.concatenate([each.input_ids for each in parts]), np.concatenate([each.length for each in parts])
    )


@given(documents, seq_lens, st.lists(st.integers(0, 10), max_size=4))
@pure
def test_documents_that_come_in_parts_give_the_rows_that_they_give_at_once(
    documents: list[list[int]], seq_len: int, cuts: list[int]
) -> None:
    in_parts, at_once = packed_in_parts(documents, cuts, seq_len), packed(documents, seq_len)
    assert np.array_equal(in_parts.input_ids, at_once.input_ids)
    assert np.array_equal(in_parts.length, at_once.length)
    assert (in_parts.input_ids.dtype, in_parts.length.dtype) == (at_once.input_ids.dtype, at_once.length.dtype)


@given(st.lists(st.lists(st.integers(1, 299), max_size=25), min_size=1, max_size=10), seq_lens)
@pure
def test_the_documents_can_be_read_back_from_the_rows(documents: list[list[int]], seq_len: int) -> None:
    tokens = unpacked(packed(documents, seq_len))
    if len(laid_end_to_end(documents)) > len(tokens):
        tokens.append(SEPARATOR)
    ends = [place for place, token in enumerate(tokens) if token == SEPARATOR]
    assert [tokens[first + 1 : end] for first, end in pairwise([-1, *ends])] == documents


@given(documents, documents, seq_lens)
@pure
def test_documents_after_the_end_of_a_line_begin_a_new_one(
    earlier: list[list[int]], later: list[list[int]], seq_len: int
) -> None:
    packer = Packer(seq_len, ENDS, id_dtype(300))
    packer.add(earlier)
    packer.finish()
    rows = [packer.add(later), packer.finish()]
    assert np.array_equal(np.concatenate([each.input_ids for each in rows]), packed(later, seq_len).input_ids)


def test_a_line_ends_once() -> None:
    packer = Packer(4, ENDS, id_dtype(300))
    assert packer.add([[1, 2]]).input_ids.shape == (0, 4)
    assert packer.finish().input_ids.tolist() == [[1, 2, 0, 0]]
    again = packer.finish()
    assert (again.input_ids.shape, again.length.tolist()) == ((0, 4), [])


def test_a_lone_last_separator_is_left_off_and_does_not_begin_the_next_line() -> None:
    packer = Packer(4, ENDS, id_dtype(300))
    assert packer.add([[1, 2, 3, 4]]).input_ids.tolist() == [[1, 2, 3, 4]]
    assert len(packer.finish()) == 0
    assert packer.add([[5, 6, 7]]).input_ids.tolist() == [[5, 6, 7, 0]]


def test_rows_stay_as_they_were_while_more_documents_come() -> None:
    packer = Packer(2, ENDS, id_dtype(300))
    rows = packer.add([np.array([1, 2, 3]), [4, 5]])
    before = rows.input_ids.tolist()
    packer.add([[6] * 20])
    packer.finish()
    assert rows.input_ids.tolist() == before == [[1, 2], [3, 0], [4, 5]]


# With a bos token

BOS = 300
BEGUN = Ends(SEPARATOR, BOS)
wide = id_dtype(301)


@given(documents, seq_lens)
@pure
def test_with_a_bos_token_every_row_begins_with_one_and_every_document_too(
    documents: list[list[int]], seq_len: int
) -> None:
    rows = pack(documents, seq_len, BEGUN, wide)
    assert (rows.input_ids[:, 0] == BOS).all()
    assert ((rows.length >= MIN_LENGTH) & (rows.length <= seq_len)).all() and (rows.length[:-1] == seq_len).all()
    assert (rows.input_ids[-1:, rows.length[-1:].sum() :] == SEPARATOR).all()
    tokens = [token for token in unpacked(rows) if token != BOS]
    line = laid_end_to_end(documents)
    assert tokens == line[: len(tokens)] and line[len(tokens) :] in ([], [SEPARATOR])
    followed = [after for before, after in pairwise(unpacked(rows)) if before == SEPARATOR]
    assert all(token == BOS for token in followed)


@given(documents, st.lists(st.integers(0, 10), max_size=4), seq_lens)
@pure
def test_with_a_bos_token_documents_in_parts_give_the_same_rows(
    documents: list[list[int]], cuts: list[int], seq_len: int
) -> None:
    packer = Packer(seq_len, BEGUN, wide)
    bounds = [0, *sorted(min(cut, len(documents)) for cut in cuts), len(documents)]
    parts = [packer.add(documents[first:stop]) for first, stop in pairwise(bounds)] + [packer.finish()]
    whole = pack(documents, seq_len, BEGUN, wide)
    assert np.array_equal(np.concatenate([each.input_ids for each in parts]), whole.input_ids)
    assert np.array_equal(np.concatenate([each.length for each in parts]), whole.length)


@st.composite
def documents_in_parts(draw: st.DrawFn) -> tuple[list[list[int]], list[tuple[list[int], bool]]]:
    """Documents, some with a bos token of their own, and the same in parts, each with whether it ends its document."""
    whole = draw(st.lists(st.lists(st.integers(1, BOS), max_size=25), max_size=6))
    parts: list[tuple[list[int], bool]] = []
    for document in whole:
        cuts = sorted(draw(st.lists(st.integers(0, len(document)), max_size=3)))
        bounds = [0, *cuts, len(document)]
        parts += [(document[first:stop], False) for first, stop in pairwise(bounds)]
        parts[-1] = parts[-1][0], True
    return whole, parts


@given(
    documents_in_parts(),
    st.lists(st.integers(0, 20), max_size=4),
    seq_lens,
    st.sampled_from([ENDS, BEGUN, Ends(BOS, BOS)]),
)
@pure
def test_documents_that_are_cut_into_parts_give_the_rows_of_whole_ones(
    both: tuple[list[list[int]], list[tuple[list[int], bool]]], cuts: list[int], seq_len: int, ends: Ends
) -> None:
    whole, parts = both
    packer = Packer(seq_len, ends, wide)
    found = []
    for first, stop in pairwise([0, *sorted(min(cut, len(parts)) for cut in cuts), len(parts)]):
        found.append(packer.add([ids for ids, _ in parts[first:stop]], [is_ended for _, is_ended in parts[first:stop]]))
    found.append(packer.finish())
    expected = pack(whole, seq_len, ends, wide)
    assert np.concatenate([each.input_ids for each in found]).tobytes() == expected.input_ids.tobytes()
    assert np.concatenate([each.length for each in found]).tobytes() == expected.length.tobytes()


@pytest.mark.parametrize("ends", [ENDS, BEGUN])
def test_rows_of_a_document_come_before_it_ends(ends: Ends) -> None:
    packer = Packer(4, ends, wide)
    assert len(packer.add([[1] * 3], [False])) == (1 if ends.bos_id else 0)
    assert len(packer.add([[1] * 100], [False])) >= 25


def test_a_document_that_brings_its_bos_token_gets_no_second_one() -> None:
    rows = pack([[BOS, 1, 2], [3, 4, 5, 6]], 4, BEGUN, wide)
    assert rows.input_ids.tolist() == [[BOS, 1, 2, SEPARATOR], [BOS, 3, 4, 5], [BOS, 6, SEPARATOR, SEPARATOR]]
    assert rows.length.tolist() == [4, 4, 3]


def test_a_separator_that_is_the_bos_token_begins_the_document_after_it() -> None:
    rows = pack([[1, 2], [3, 4, 5, 6]], 4, Ends(BOS, BOS), wide)
    assert rows.input_ids.tolist() == [[BOS, 1, 2, BOS], [BOS, 3, 4, 5], [BOS, 6, BOS, BOS]]
    assert rows.length.tolist() == [4, 4, 3]
