"""Multiple-choice questions on text that a model was pretrained on: `python -m tests.evidence.questions FOLDER FILE`.

FOLDER is what `tests.evidence.world` made. A question is a stretch of a held-out document; its choices are what follows
there, and stretches of other documents of the same domain. The task is the domain. Writes the `choices` of a study.
"""

import argparse
import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.evidence.pieces import begin_of_character

Row = dict[str, Any]


def questions_of(
    domain: str, documents: Sequence[str], num: int, prompt_bytes: int, choice_bytes: int, num_choices: int
) -> Iterator[Row]:
    """Some questions on a domain, the same whenever it is called.

    Raises:
        ValueError: when there are no two documents that are long enough.
    """
    random_ = random.Random(domain)
    needed = prompt_bytes + choice_bytes
    long = [each.encode() for each in documents if len(each.encode()) > needed]
    if len(long) < 2:
        raise ValueError(f"{len(long)} documents of {domain} have more than {needed} bytes; two are needed")
    for _ in range(num):
        place = random_.randrange(len(long))
        own, others = long[place], random_.choices([*long[:place], *long[place + 1 :]], k=num_choices - 1)
        begin = random_.randrange(len(own) - needed)
        prompt, right = _parts(own, begin, begin + prompt_bytes, begin + needed)
        wrong = [_stretch(each, choice_bytes, random_) for each in others]
        answer = random_.randrange(num_choices)
        choices = [*wrong[:answer], right, *wrong[answer:]]
        yield {"prompt": prompt, "choices": choices, "answer": answer, "task": domain}


def _stretch(document: bytes, num_bytes: int, random_: random.Random) -> str:
    begin = random_.randrange(len(document) - num_bytes)
    return _parts(document, begin, begin + num_bytes)[0]


def _parts(document: bytes, *edges: int) -> list[str]:
    """The text between edges; one within a character moves to where that begins."""
    moved = [begin_of_character(document, edge) for edge in edges]
    return [document[begin:end].decode() for begin, end in itertools.pairwise(moved)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path, help="to write, .parquet")
    parser.add_argument("--domains", nargs="*", help="by default all")
    parser.add_argument("--questions", type=int, default=64, help="of each domain")
    parser.add_argument("--prompt-bytes", type=int, default=96)
    parser.add_argument("--choice-bytes", type=int, default=32)
    parser.add_argument("--num-choices", type=int, default=4)
    args = parser.parse_args()
    rows = list[Row]()
    for shard in sorted((args.folder / "text" / "heldout").glob("*.parquet")):
        if not args.domains or shard.stem in args.domains:
            documents = pq.read_table(shard)["text"].to_pylist()
            rows += questions_of(
                shard.stem, documents, args.questions, args.prompt_bytes, args.choice_bytes, args.num_choices
            )
    args.file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), args.file)
    print(f"{len(rows)} questions in {args.file}")


if __name__ == "__main__":
    main()
