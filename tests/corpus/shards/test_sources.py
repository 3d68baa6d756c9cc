import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from replay_service.corpus.shards.sources import Columns, Shard, check_readable, find_shards, read_documents
from replay_service.errors import UnusableSource
from tests.corpus.shard_files import COLUMNED, LINES, TABLES, compressed, texts, write, write_table
from tests.object_storage import s3_server, upload, url_query

ROWS = [{"text": "one", "topic": "a"}, {"text": "two", "topic": "b"}]
SHARDS = ["en/z.jsonl", "fr/a.txt", "fr/deep/er/b.txt", "wiki-00001-of-00010.parquet"]
TREE = (*SHARDS, "top.md")
"""A text that stands beside tables describes them."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["local", "s3", "memory"])
def tree(request: pytest.FixtureRequest, tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with a tree of shards, and what is none, in each kind of place: with a slash at its end."""
    fill(tmp_path / "tree")
    if request.param == "s3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        upload(endpoint, tmp_path.name, tmp_path)
        return f"s3://{tmp_path.name}/tree/"
    if request.param == "memory":
        import fsspec

        fsspec.filesystem("memory").put(f"{tmp_path}/tree", f"/{tmp_path.name}/tree", recursive=True)
        return f"memory://{tmp_path.name}/tree/"
    return f"{tmp_path}/tree/"


def fill(folder: Path) -> None:
    for name in TREE:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".txt", ".md"):
            path.write_text(f"text of {name}")
        else:
            write(path, ROWS)
    for ignored in (".hidden.txt", "fr/readme.pdf", "en/table.parquet.gz", ".cache/a.txt", "fr/.git/deep/b.txt"):
        (folder / ignored).parent.mkdir(parents=True, exist_ok=True)
        (folder / ignored).write_text("not this")


def names(source: str | Path) -> list[str]:
    return [shard.name for shard in find_shards(source)]


def test_a_folder_is_searched_in_name_order_and_hidden_files_are_passed_over(tree: str) -> None:
    assert names(tree) == SHARDS
    assert names(tree.rstrip("/")) == SHARDS


def test_the_first_folder_below_the_source_is_the_domain_else_the_files_name_tells(tree: str) -> None:
    assert [shard.domain for shard in find_shards(tree)] == ["en", "fr", "fr", "wiki"]


def test_the_documents_of_every_place_are_the_same(tree: str) -> None:
    assert texts(tree) == ["one", "two", "text of fr/a.txt", "text of fr/deep/er/b.txt", "one", "two"]
    for shard in find_shards(tree):
        check_readable(shard, Columns())


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("**/*.txt", ["fr/a.txt", "fr/deep/er/b.txt"]),
        ("*/*.txt", ["fr/a.txt"]),
        ("**", sorted(TREE)),
        ("fr/**", ["a.txt", "deep/er/b.txt"]),
        ("fr/**/[bc].txt", ["deep/er/b.txt"]),
        ("wiki-0000?-of-*.parquet", ["wiki-00001-of-00010.parquet"]),
        ("*", ["top.md", "wiki-00001-of-00010.parquet"]),
    ],
)
def test_a_glob_finds_the_files_that_it_matches_named_from_its_first_wildcard_on(
    tree: str, glob: str, found: list[str]
) -> None:
    assert names(tree + glob) == found


@pytest.mark.parametrize("missing", ["nowhere", "nowhere/", "nowhere/*.txt", "*.csv", "fr/*/a.txt", "fr/a.txt/b"])
def test_what_is_not_there_is_named(tree: str, missing: str) -> None:
    with pytest.raises(UnusableSource, match=r"nowhere|holds no shard|there is no file"):
        find_shards(tree + missing)


def test_a_single_file_is_a_shard_by_its_name(tree: str) -> None:
    (shard,) = find_shards(tree + "fr/deep/er/b.txt")
    assert (shard.name, shard.domain, shard.kind) == ("b.txt", "b", "text")
    assert texts(tree + "fr/deep/er/b.txt") == ["text of fr/deep/er/b.txt"]


def test_a_file_of_an_unknown_kind_is_named(tree: str) -> None:
    with pytest.raises(UnusableSource, match=r"readme\.pdf is no shard"):
        find_shards(tree + "fr/readme.pdf")


@pytest.mark.parametrize("name", COLUMNED)
def test_every_kind_is_read_from_an_object_store(
    tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """By moto, which proves no signatures, throttling, retries or consistency: see tests/object_storage.py."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    write(tmp_path / "data" / name, ROWS)
    upload(endpoint, tmp_path.name, tmp_path)
    source = f"s3://{tmp_path.name}/data{url_query(endpoint)}"
    (shard,) = find_shards(source)
    assert shard.url.endswith(f"/data/{name}{url_query(endpoint)}")
    check_readable(shard, Columns())
    assert texts(source) == texts(shard.url) == ["one", "two"]


def test_a_shard_takes_the_credentials_of_its_url_with_it(
    tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data" / "web.jsonl", ROWS)
    upload(endpoint, "with-credentials", tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    (shard,) = find_shards(f"s3://key:sec/ret+@with-credentials/**/*.jsonl{url_query(endpoint)}")
    assert shard.url == f"s3://key:sec/ret+@with-credentials/data/web.jsonl{url_query(endpoint)}"
    sent = pickle.loads(pickle.dumps(shard))
    assert len(list(read_documents(sent, Columns()))) == 2
    assert "sec/ret+" not in repr(sent)


def test_a_bucket_that_is_not_there_and_one_that_is_empty_are_named(endpoint: str) -> None:
    upload(endpoint, "empty-bucket")
    with pytest.raises(UnusableSource, match="s3://empty-bucket holds no shard"):
        find_shards(f"s3://empty-bucket{url_query(endpoint)}")
    with pytest.raises(UnusableSource, match="s3://no-such-bucket"):
        find_shards(f"s3://no-such-bucket{url_query(endpoint)}")
    with pytest.raises(UnusableSource, match="names no bucket"):
        find_shards(f"s3://{url_query(endpoint)}")


def test_keys_with_odd_names_are_taken_as_they_are(endpoint: str, tmp_path: Path) -> None:
    odd = ["a b.txt", "c%20d.txt", "e#f.txt", "g+h&i=j.txt", "é.txt", "k@l/m.txt"]
    for name in odd:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    upload(endpoint, "odd", tmp_path / "in")
    assert sorted(texts(f"s3://odd{url_query(endpoint)}")) == sorted(texts(tmp_path / "in")) == sorted(odd)


@pytest.mark.parametrize("source", ["s3://bucket/a//b.jsonl", "s3://bucket//a", "gs://bucket/a//*.jsonl"])
def test_a_key_with_an_empty_part_is_named(source: str) -> None:
    with pytest.raises(UnusableSource, match=r"its key has an empty part \(//\); copy it to another key"):
        find_shards(source)


def test_a_key_with_an_empty_part_that_is_found_in_a_bucket_is_named(endpoint: str, tmp_path: Path) -> None:
    import boto3

    upload(endpoint, "empty-part", tmp_path)
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.put_object(Bucket="empty-part", Key="a//b.jsonl", Body=b'{"text": "x"}\n')
    (shard,) = find_shards(f"s3://empty-part/a{url_query(endpoint)}")
    with pytest.raises(UnusableSource, match=r"s3://empty-part/a//b\.jsonl cannot be read: its key has an empty part"):
        check_readable(shard, Columns())


def test_a_local_path_may_be_relative_or_a_file_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    expected = str(tmp_path / "a.txt")
    assert [shard.url for shard in find_shards("a.txt")] == [expected]
    assert [shard.url for shard in find_shards(Path())] == [expected]
    assert [shard.url for shard in find_shards("*.txt")] == [expected]
    assert [shard.url for shard in find_shards(f"file://{tmp_path}")] == [expected]


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data[1]*").mkdir()
    (tmp_path / "data[1]*" / "a.txt").write_text("x")
    assert names(tmp_path / "data[1]*") == ["a.txt"]


def test_links_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("x")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "en").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "source" / "round").symlink_to(tmp_path / "source")
    assert names(tmp_path / "source") == ["en/a.txt"]


def test_a_link_to_nothing_is_a_shard_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (shard,) = find_shards(tmp_path)
    with pytest.raises(UnusableSource, match=r"gone\.txt"):
        check_readable(shard, Columns())


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("wiki.jsonl", "wiki"),
        ("wiki-0001.jsonl", "wiki"),
        ("wiki_12.jsonl.gz", "wiki"),
        ("train-00000-of-00010.parquet", "train"),
        ("c4-train_03_of_40.txt", "c4-train"),
        ("gpt2.txt", "gpt2"),
    ],
)
def test_the_files_name_without_its_shard_number_is_the_domain(tmp_path: Path, name: str, domain: str) -> None:
    (tmp_path / name).touch()
    assert [shard.domain for shard in find_shards(tmp_path / name)] == [domain]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "arrow") for name in TABLES[1:]),
        *((name, "jsonl") for name in LINES),
        ("a.parquet", "parquet"),
        ("A.PARQUET", "parquet"),
        ("a.json.zst", "jsonl"),
        ("a.txt.gz", "text"),
        ("a.md.zst", "text"),
        ("a.tar", "tar"),
        ("a.tar.gz", "tar"),
        ("a.tgz", "tar"),
    ],
)
def test_the_ending_tells_the_kind(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).touch()
    assert [shard.kind for shard in find_shards(tmp_path)] == [kind]


@pytest.mark.parametrize("name", ["a.csv", "a.gz", "a.parquet.gz", "a.arrow.zst", "a.jsonl.lz4", "parquet", "a.tgz.gz"])
def test_another_ending_is_no_shard(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UnusableSource, match=f"{tmp_path} holds no shard"):
        find_shards(tmp_path)


def test_the_version_changes_with_the_file_and_the_name_does_not(tmp_path: Path, tree: str) -> None:
    before = find_shards(tree)
    assert [shard.version for shard in find_shards(tree)] == [shard.version for shard in before]
    (tmp_path / "a.txt").write_text("x")
    (one,) = find_shards(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("y")
    (other,) = find_shards(tmp_path / "a.txt")
    assert one.name == other.name
    assert one.version != other.version


def test_a_longer_object_is_another_version(endpoint: str, tmp_path: Path) -> None:
    versions = set()
    for text in ("x", "longer"):
        (tmp_path / "a.txt").write_text(text)
        upload(endpoint, "versions", tmp_path)
        versions |= {shard.version for shard in find_shards(f"s3://versions{url_query(endpoint)}")}
    assert len(versions) == 2


def saved_dataset(folder: Path, texts: list[list[str]]) -> None:
    """A folder as `Dataset.save_to_disk` writes it, with a cache file and a file of an earlier save left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [f"data-{number:05d}-of-{len(texts):05d}.arrow" for number in range(len(texts))]
    for name, rows in zip([*files, "cache-2f.arrow"], [*texts, ["from a cache"]], strict=True):
        write_table(folder / name, pa.table({"text": rows}))
        (folder / name).rename(folder / "aside.stream.arrow")
        write_table(folder / "aside.stream.arrow", pa.table({"text": rows})).rename(folder / name)
    state = {"_data_files": [{"filename": name} for name in files], "_fingerprint": "0", "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state, indent=2))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"text": {"dtype": "string"}}}))


def test_a_dataset_saved_by_hugging_face_has_the_files_that_its_state_lists(tmp_path: Path) -> None:
    saved_dataset(tmp_path / "saved", [["a", "b"], ["c"]])
    assert names(tmp_path / "saved") == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert texts(tmp_path / "saved") == texts(tmp_path / "saved" / "*.arrow") == ["a", "b", "c"]


def test_a_dictionary_of_saved_datasets_has_its_splits_as_domains(
    tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for split in ("test", "train"):
        saved_dataset(tmp_path / "saved" / split, [[f"{split} text"]])
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    upload(endpoint, "saved", tmp_path)
    for source in (str(tmp_path / "saved"), "s3://saved/saved"):
        assert [shard.domain for shard in find_shards(source)] == ["test", "train"]
        assert texts(source) == ["test text", "train text"]


@pytest.mark.parametrize("state", ["{", "[]", "{}", '{"_data_files": [{}]}', '{"_data_files": [{"filename": "no"}]}'])
def test_a_saved_dataset_that_is_not_whole_is_named(tmp_path: Path, state: str) -> None:
    saved_dataset(tmp_path, [["a"]])
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(UnusableSource, match=rf"{tmp_path}/state\.json"):
        find_shards(tmp_path)


def test_a_state_json_without_a_dataset_beside_it_is_a_shard_like_any_other(tmp_path: Path) -> None:
    write(tmp_path / "state.json", ROWS)
    assert texts(tmp_path) == ["one", "two"]


@pytest.mark.parametrize("name", COLUMNED)
@pytest.mark.parametrize("columns", [Columns(text="body"), Columns(tokens="body"), Columns(domain="body")])
def test_a_missing_column_shows_before_any_work_beside_those_that_are_there(
    tmp_path: Path, name: str, columns: Columns
) -> None:
    (shard,) = find_shards(write(tmp_path / name, ROWS))
    check_readable(shard, Columns())
    with pytest.raises(UnusableSource, match=rf"{name} has no column 'body' \(its columns: text, topic\)"):
        check_readable(shard, columns)


@pytest.mark.parametrize("columns", [Columns(tokens="ids"), Columns(group="topic")])
def test_plain_text_has_no_token_ids_and_no_groups(tmp_path: Path, columns: Columns) -> None:
    (tmp_path / "a.txt").write_text("x")
    (shard,) = find_shards(tmp_path)
    for look in (check_readable, lambda *args: list(read_documents(*args))):
        with pytest.raises(UnusableSource, match=r"a\.txt is plain text"):
            look(shard, columns)


@pytest.mark.parametrize("name", LINES)
def test_a_few_lines_that_are_no_rows_do_not_condemn_a_shard_but_an_array_or_a_whole_head_of_them_does(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(compressed(tmp_path / name, b'{"broken\n' * 3 + b'{"text": "x"}\n'))
    (shard,) = find_shards(tmp_path)
    check_readable(shard, Columns())
    for content in (b'[\n{"text": "x"},\n{"text": "y"}\n]\n', b"a log file\n" * 1000):
        (tmp_path / name).write_bytes(compressed(tmp_path / name, content))
        with pytest.raises(UnusableSource, match="begins with nothing to read: row 0 is not a JSON object"):
            check_readable(shard, Columns())


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "arrow", "text", "tar"])
@pytest.mark.parametrize("place", ["/no/such/place/gone", "memory://no/such/place/gone"])
def test_a_shard_that_has_gone_is_named(place: str, kind: str) -> None:
    shard = Shard(place, kind, "d", "gone", "1-1")
    with pytest.raises(UnusableSource, match=f"shard {place} cannot be read"):
        list(read_documents(shard, Columns()))
    with pytest.raises(UnusableSource, match=f"shard {place} cannot be read"):
        check_readable(shard, Columns())


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl", "a.jsonl.gz", "a.txt", "a.md", "a.tar"])
def test_a_pointer_of_git_lfs_is_no_shard(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    (shard,) = find_shards(tmp_path / name)
    with pytest.raises(UnusableSource, match=rf"{name} is a Git LFS pointer in place of the file; run `git lfs pull`"):
        check_readable(shard, Columns())


@pytest.mark.parametrize("content", ['[\n{"text": "a"}\n]\n', '{\n"text": "a"\n}\n', '[{"text": "a"}]'])
def test_json_that_is_not_one_object_a_line_is_refused_with_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    (shard,) = find_shards(tmp_path / "a.json")
    with pytest.raises(UnusableSource, match=r"not a JSON object: .*; write one JSON object a line, or take it out"):
        check_readable(shard, Columns())
