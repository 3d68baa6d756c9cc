"""Targets as rows that FLOW can weigh: `python -m tests.evidence.pieces FOLDER`.

FOLDER is what `tests.evidence.world` made. FLOW weighs a fine-tuning sample, and a document of a target is many rows
long. So documents are cut into pieces of a row, between characters: `text/pieces/NAME.parquet` and
`text/pieces_heldout/NAME.parquet`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PIECE_BYTES = 126
"""A row of 128 tokens holds such a piece and its separator."""


def begin_of_character(content: bytes, place: int) -> int:
    """Where the character begins that the byte at a place is a part of; content is UTF-8."""
    while place < len(content) and content[place] & 0b1100_0000 == 0b1000_0000:
        place -= 1
    return place


def pieces_of(document: str, most_bytes: int) -> Iterator[str]:
    """The document in pieces of at most so many bytes; all but the last are as long as characters allow."""
    content, first = document.encode(), 0
    while first < len(content):
        end = begin_of_character(content, first + most_bytes)
        yield content[first:end].decode()
        first = end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    text = parser.parse_args().folder / "text"
    for whole, cut in (("targets", "pieces"), ("targets_heldout", "pieces_heldout")):
        (text / cut).mkdir(exist_ok=True)
        for target in sorted((text / whole).iterdir()):
            documents = pq.read_table(target)["text"].to_pylist()
            pieces = [each for document in documents for each in pieces_of(document, PIECE_BYTES)]
            pq.write_table(pa.table({"text": pieces}), text / cut / f"{target.name}.parquet")
            print(f"{cut} of {target.name}: {len(pieces):,} rows")


if __name__ == "__main__":
    main()
