"""Which files of a source are shards."""

from pathlib import Path

import pytest

from replay_service.corpus.shards.listing import look_into, some_of
from replay_service.corpus.shards.urls import resolved
from replay_service.errors import UnusableSource
from tests.corpus.shard_files import texts, write

ROWS = [{"text": "one"}]


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".parquet", ".jsonl", ".jsonl.bz2", ".tar")):
            write(path, ROWS)
        else:
            path.write_text("not this")
    return folder


def listed(source: Path) -> tuple[list[str], list[str]]:
    found = look_into(source)
    return [shard.name for shard in found.shards], found.passed_over


def test_what_begins_with_a_dot_or_an_underscore_is_no_part_of_the_data(tmp_path: Path) -> None:
    fill(tmp_path, "part-0.parquet", "_SUCCESS", "_temporary/0/part-1.parquet", ".hidden/a.parquet", "a/_b.jsonl")
    assert listed(tmp_path) == (["part-0.parquet"], [])
    assert texts(tmp_path / "a/_b.jsonl") == ["one"]


def test_a_folder_that_stands_for_a_column_is_searched(tmp_path: Path) -> None:
    fill(tmp_path, "_lang=en/a.parquet", "year=2024/b.parquet")
    assert listed(tmp_path)[0] == ["_lang=en/a.parquet", "year=2024/b.parquet"]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    left = ["b.csv", "c.jsonl.part", "d.parquet.crdownload", "e.txt~", "f.jsonl.tmp", "sub/LICENSE"]
    fill(tmp_path, "a.jsonl", "g.jsonl.bz2", *left)
    assert listed(tmp_path) == (["a.jsonl", "g.jsonl.bz2"], left)
    assert texts(tmp_path) == ["one", "one"]


def test_a_source_of_which_nothing_can_be_read_is_refused_with_the_names(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{number}.csv" for number in range(7)))
    with pytest.raises(UnusableSource, match=r"holds no shard; it holds 0\.csv, .*4\.csv and 2 more; shards end in"):
        look_into(tmp_path)


@pytest.mark.parametrize("data", ["a.parquet", "a.jsonl", "a.tar", "data/deep/a.jsonl"])
def test_texts_and_json_beside_or_above_data_describe_it(tmp_path: Path, data: str) -> None:
    about = ["LICENSE.txt", "README.md", "sizes.json"]
    fill(tmp_path, data, *about, "other/a.txt")
    assert listed(tmp_path) == (sorted([data, "other/a.txt"]), about)


def test_a_glob_or_a_path_takes_what_it_names(tmp_path: Path) -> None:
    fill(tmp_path, "a.parquet", "b.txt", "c.csv")
    assert listed(tmp_path / "*") == (["a.parquet", "b.txt"], ["c.csv"])
    assert listed(tmp_path / "*.txt") == (["b.txt"], [])
    assert listed(tmp_path / "b.txt") == (["b.txt"], [])


def test_texts_and_json_alone_are_data(tmp_path: Path) -> None:
    assert listed(fill(tmp_path, "a.txt", "b.json", "c.md")) == (["a.txt", "b.json", "c.md"], [])


ABOUT = ["CHANGELOG.md", "Code-of-Conduct.md", "LICENSE.txt", "README.md", "README.zh-CN.md", "requirements.txt"]


@pytest.mark.parametrize("others", [[], ["data.csv", "train-0.lance"], ["docs/README.md"]])
def test_a_source_of_descriptions_alone_is_refused_with_what_was_passed_over(tmp_path: Path, others: list[str]) -> None:
    fill(tmp_path, *ABOUT, *others)
    with pytest.raises(UnusableSource, match=r"no shard; it holds CHANGELOG\.md, .* more, of which a glob such as"):
        look_into(tmp_path)
    assert listed(tmp_path / "README.md")[0] == ["README.md"]
    assert listed(tmp_path / "*.md")[0] == [each for each in ABOUT if each.endswith(".md")]


def test_descriptions_of_a_source_of_texts_are_passed_over_and_those_below_are_texts(tmp_path: Path) -> None:
    fill(tmp_path, *ABOUT, "a.txt", "project/README.md", "project/guide.md", "readme-0001.txt")
    assert listed(tmp_path) == (["a.txt", "project/README.md", "project/guide.md", "readme-0001.txt"], ABOUT)


def test_the_metadata_of_a_data_set_is_never_data(tmp_path: Path) -> None:
    fill(tmp_path, "dataset_infos.json", "a.txt")
    for source in (tmp_path, tmp_path / "*"):
        assert listed(source)[0] == ["a.txt"]


def test_links_to_one_file_are_one_shard(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "a.jsonl")
    (tmp_path / "source").mkdir()
    for name in ("x.jsonl", "y.jsonl"):
        (tmp_path / "source" / name).symlink_to(tmp_path / "elsewhere/a.jsonl")
    assert listed(tmp_path / "source") == (["x.jsonl"], ["y.jsonl"])
    (shard,) = look_into(tmp_path / "source").shards
    assert shard.place == look_into(tmp_path / "elsewhere").shards[0].place


def test_a_place_holds_no_secret_and_tells_servers_apart() -> None:
    assert resolved("https://me:swordfish@host/a.jsonl?token=swordfish") == "https://host/a.jsonl"
    assert (
        resolved("s3://key:secret@b/a?region=x&endpoint_override=h:9&scheme=http") == "s3://b/a?endpoint_override=h:9"
    )


def test_the_first_of_many_names_are_said() -> None:
    assert some_of(["a", "b"]) == "a, b"
    assert some_of(list("abcdefg")) == "a, b, c, d, e and 2 more"
