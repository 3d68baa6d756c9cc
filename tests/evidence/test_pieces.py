"""Documents in pieces of a row."""

from hypothesis import given
from hypothesis import strategies as st

from tests.evidence.pieces import pieces_of


@given(st.text(), st.integers(4, 20))
def test_pieces_make_the_document_and_are_as_long_as_characters_allow(document: str, most_bytes: int) -> None:
    pieces = list(pieces_of(document, most_bytes))
    assert "".join(pieces) == document
    sizes = [len(each.encode()) for each in pieces]
    assert all(size <= most_bytes for size in sizes) and all(size > most_bytes - 4 for size in sizes[:-1])
