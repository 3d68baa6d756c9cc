"""Pieces of long texts: a tokenizer takes a hundred times the size of what it encodes at once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeVar

PIECE_CHARACTERS: Final = 1 << 18
_CHARACTERS_AT_ONCE: Final = 2 * PIECE_CHARACTERS

Item = TypeVar("Item")

_BEFORE: Final = "a"
"""Stands before a piece that goes on with a text: some tokenizers put a space before a text, or leave out its first."""


def cut_place(text: str, first: int = 0, most: int = PIECE_CHARACTERS) -> int:
    """Where the piece of at most `most` characters ends that begins at `first`; at the end of a shorter text, there.

    The cut comes between a letter or digit and the space or newline after it, where no usual tokenizer has a token
    across. Without such a place it comes after `most` characters, and the token ids around it may be others than those
    of the whole text.
    """
    if len(text) - first <= most:
        return len(text)
    stop = first + most + 1
    while (place := max(text.rfind(" ", first + 1, stop), text.rfind("\n", first + 1, stop))) > first:
        if text[place - 1].isalnum():
            return place
        stop = place
    return first + most


def pieces_of(text: str, most: int = PIECE_CHARACTERS) -> Iterator[str]:
    """A text in pieces of at most `most` characters, cut by `cut_place`; an empty one is one piece."""
    first = 0
    while True:
        place = cut_place(text, first, most)
        yield text[first:place]
        if place == len(text):
            return
        first = place


def with_last(items: Iterator[Item]) -> Iterator[tuple[Item, bool]]:
    """Each, and whether it is the last one."""
    before = next(items)
    for each in items:
        yield before, False
        before = each
    yield before, True


EncodeBatch = Callable[[list[str]], list[list[int]]]
"""Token ids of each text."""


class _Piece(NamedTuple):
    text_index: int
    text: str
    goes_on: bool


def encode_in_pieces(
    encode_batch: EncodeBatch, texts: Sequence[str], goes_on: Sequence[bool] | None = None, most: int | None = None
) -> list[list[int]]:
    """Token ids of each text, in memory that does not depend on how long the texts are, but for the ids themselves.

    Args:
        encode_batch: encodes texts whole.
        texts: of any length.
        goes_on: whether each goes on with the one before it, from which `cut_place` has cut it off; none does by
            default.
        most: leave off after so many ids of a text or more.
    """
    before: list[int] | None = None
    ids: list[list[int]] = [[] for _ in texts]
    for some in _groups(_pieces(texts, goes_on)):
        wanted = [each for each in some if most is None or len(ids[each.text_index]) < most]
        found = encode_batch([_BEFORE + each.text if each.goes_on else each.text for each in wanted])
        for piece, its_ids in zip(wanted, found, strict=True):
            if piece.goes_on:
                before = encode_batch([_BEFORE])[0] if before is None else before
                is_apart = its_ids[: len(before)] == before
                its_ids = its_ids[len(before) :] if is_apart else encode_batch([piece.text])[0]  # noqa: PLW2901
            ids[piece.text_index] += its_ids
    return ids


def _pieces(texts: Sequence[str], goes_on: Sequence[bool] | None) -> Iterator[_Piece]:
    for index, text in enumerate(texts):
        is_later = goes_on is not None and goes_on[index]
        for piece in pieces_of(text):
            yield _Piece(index, piece, is_later)
            is_later = True


def _groups(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    some: list[_Piece] = []
    num_characters = 0
    for piece in pieces:
        some.append(piece)
        num_characters += len(piece.text)
        if num_characters >= _CHARACTERS_AT_ONCE:
            yield some
            some, num_characters = [], 0
    if some:
        yield some
