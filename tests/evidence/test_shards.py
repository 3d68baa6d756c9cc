from pathlib import Path

import pyarrow.parquet as pq

from tests.evidence.shards import LEAST_BYTES, MOST_BYTES, Amounts, Splitter, write_shard

DOCUMENTS = [f"document {i}: " + "ä" * LEAST_BYTES for i in range(100)]


def test_no_document_is_in_two_parts() -> None:
    splitter = Splitter()
    one = splitter.split([*DOCUMENTS, f"  {DOCUMENTS[3]}\n"], Amounts(train=8000, heldout=4000))
    other = splitter.split([*DOCUMENTS, "another " * LEAST_BYTES], Amounts(train=8000, heldout=1))
    assert len(one.heldout) == 10 and len(one.train) == 20
    assert not set(one.train) & set(one.heldout)
    assert other.heldout + other.train == [("another " * LEAST_BYTES).strip()]


def test_what_is_held_out_does_not_depend_on_the_order_of_documents() -> None:
    amounts = Amounts(train=4000, heldout=4000)
    assert Splitter().split(DOCUMENTS, amounts) == Splitter().split(DOCUMENTS[::-1], amounts)


def test_short_documents_are_left_out_and_long_ones_cut_between_characters() -> None:
    split = Splitter().split(["short", "x" + "ä" * MOST_BYTES], Amounts(train=0, heldout=100_000))
    assert [len(each.encode()) for each in split.heldout] == [MOST_BYTES - 1]


def test_a_shard_says_its_domain(tmp_path: Path) -> None:
    write_shard(tmp_path / "deep" / "one.parquet", "one", ["a", "b"])
    assert pq.read_table(tmp_path / "deep").to_pydict() == {"text": ["a", "b"], "domain": ["one", "one"]}
    assert [each.name for each in (tmp_path / "deep").iterdir()] == ["one.parquet"]
