"""What `replay-service ingest` refuses before it starts anything."""

from pathlib import Path

import pytest

from tests.cli.worlds import assert_message, run
from tests.corpus.worlds import write_jsonl


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "source/a.jsonl", ["some text"]).parent


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--seq-len", 1], "--seq-len"),
        (["--quantiles", 0], "--quantiles"),
        (["--clusters", -1], "--clusters"),
        (["--clusters", 4, "--group-column", "lang"], "clusters and a column of groups do not go together"),
        (["--batch-size", 0], "--batch-size"),
        (["--scorers", 0], "--scorers"),
        (["--gpus-per-scorer", 0], "gpus_per_scorer must be above 0"),
        (["--gpus-per-scorer", 1.5], "gpus_per_scorer must be whole"),
        (["--store-topk", 65], "--store-topk"),
        (["--store-topk", -1], "--store-topk"),
        (["--kind", "speech"], "--kind"),
        (["--inputs-column", "image"], "say kind classification"),
        (["--kind", "classification", "--store-topk", 3], "neither the likeliest tokens nor clusters"),
        (["--kind", "classification", "--model", "a.package:factory"], "brings no tokenizer"),
        (["--rows-per-segment", 0], "--rows-per-segment"),
        (["--precision", "fp8"], "--precision"),
        (["--follow", "--poll-s", 0], "--poll-s"),
        (["--follow", "--poll-s", -5], "--poll-s"),
        (["--seq-len", "many"], "--seq-len"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_an_option_out_of_range_ends_with_a_message_and_makes_nothing(
    source: Path, tmp_path: Path, options: list[str | int | float], named: str
) -> None:
    new = tmp_path / "new"
    result = run("ingest", source, "--corpus", "wiki", "--model", "tiny", "--root", new, *options)
    assert_message(result, named)
    assert not new.exists()


@pytest.mark.parametrize("name", ["../up", "Wiki", "", "a b"])
def test_a_name_that_could_not_be_a_folder_is_refused(source: Path, tmp_path: Path, name: str) -> None:
    result = run("ingest", source, "--corpus", name, "--model", "tiny", "--root", tmp_path / "new")
    assert_message(result, "cannot name a corpus", repr(name))


@pytest.mark.parametrize("name", ["[/red]", "[bold]x", "[a-z]*.parquet", ":cat:"])
def test_a_path_is_printed_as_it_is_whatever_it_looks_like(tmp_path: Path, name: str) -> None:
    result = run("ingest", tmp_path / name, "--corpus", "wiki", "--model", "tiny")
    assert_message(result, name.split("/")[0])
    assert len(result.output.splitlines()) == 1


def test_a_source_on_a_machine_that_is_not_there_is_named_without_its_secrets() -> None:
    source = "http://me:swordfish@127.0.0.1:9/data/a.jsonl?token=swordfish"
    result = run("ingest", source, "--corpus", "wiki", "--model", "tiny")
    assert_message(result, "http://127.0.0.1:9/data/a.jsonl")
    assert "swordfish" not in result.output
