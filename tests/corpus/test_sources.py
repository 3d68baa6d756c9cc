import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replay_service.corpus.sources import Columns, Document, Shard, check_readable, find_shards, read_documents
from replay_service.errors import UnusableSource
from tests.corpus.worlds import write_jsonl

ROWS = [{"text": "one", "topic": "a"}, {"text": None, "topic": "b"}, {"text": " \n", "topic": None}]


def lines_of(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines_of(rows).encode()))
    else:
        path.write_text(lines_of(rows))
    return path


def documents_in(path: Path, columns: Columns | None = None) -> list[Document]:
    return [document for shard in find_shards(path) for document in read_documents(shard, columns or Columns())]


@pytest.mark.parametrize(
    "name", ["web.parquet", "web.jsonl", "web.jsonl.gz", "web.json", "web.ndjson", "web.ndjson.gz"]
)
def test_rows_without_usable_text_are_set_aside_and_the_others_read(tmp_path: Path, name: str) -> None:
    assert documents_in(write(tmp_path / name, ROWS)) == [
        Document("web", "one"),
        Document("web", None),
        Document("web", None),
    ]


@pytest.mark.parametrize("name", ["web.parquet", "web.jsonl", "web.jsonl.gz"])
def test_a_column_names_the_domain_and_the_shard_stands_in_where_it_is_empty(tmp_path: Path, name: str) -> None:
    documents = documents_in(write(tmp_path / name, ROWS), Columns(domain="topic"))
    assert [document.domain for document in documents] == ["a", "b", "web"]


@pytest.mark.parametrize("name", ["web.parquet", "web.jsonl"])
def test_a_domain_may_be_a_number_and_be_zero(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{"label": label, "text": "x"} for label in (0, 1)])
    assert [document.domain for document in documents_in(path, Columns(domain="label"))] == ["0", "1"]


@pytest.mark.parametrize("order", [["text", "topic"], ["topic", "text"]])
def test_columns_are_told_apart_by_name(tmp_path: Path, order: list[str]) -> None:
    path = write(tmp_path / "web.parquet", [{name: {"text": "x", "topic": "t"}[name] for name in order}])
    assert documents_in(path, Columns(domain="topic")) == [Document("t", "x")]


def test_the_text_may_stand_in_another_column(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.parquet"):
        path = write(tmp_path / name, [{"content": "hello", "text": "not this"}])
        assert documents_in(path, Columns(text="content"))[0].text == "hello"


@pytest.mark.parametrize("name", ["story.txt", "story.md"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("été\n\n\nover several lines\n", encoding="utf-8")
    assert documents_in(tmp_path / name) == [Document("story", "été\n\n\nover several lines\n")]


def test_blank_lines_of_a_jsonl_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"text": "x"}\n\n  \n{"text": "y"}')
    assert [document.text for document in documents_in(tmp_path / "a.jsonl")] == ["x", "y"]


@pytest.mark.parametrize("text", [7, ["a"], {"a": 1}, True])
def test_what_is_no_text_is_set_aside(tmp_path: Path, text: object) -> None:
    assert documents_in(write_jsonl(tmp_path / "a.jsonl", [text]))[0].text is None


def test_text_that_no_encoding_can_hold_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "half an emoji \\ud83d"}\n{"text": "a whole one \\ud83d\\ude00"}\n')
    assert [document.text for document in documents_in(tmp_path / "a.jsonl")] == [None, "a whole one 😀"]


def test_a_folder_is_searched_in_name_order_and_its_first_level_names_the_domain(tmp_path: Path) -> None:
    for name in ("fr/deep/er/b.txt", "fr/a.txt", "en/z.jsonl", "wiki-00001-of-00010.parquet", "books_7.txt", "top.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for ignored in (".hidden.txt", "fr/readme.pdf", "en/archive.txt.gz"):
        (tmp_path / ignored).touch()
    found = [(str(shard.path.relative_to(tmp_path)), shard.domain) for shard in find_shards(tmp_path)]
    assert found == [
        ("books_7.txt", "books"),
        ("en/z.jsonl", "en"),
        ("fr/a.txt", "fr"),
        ("fr/deep/er/b.txt", "fr"),
        ("top.txt", "top"),
        ("wiki-00001-of-00010.parquet", "wiki"),
    ]


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


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnusableSource, match=str(tmp_path / "nowhere")):
        find_shards(tmp_path / "nowhere")


def test_a_folder_without_a_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "picture.png").touch()
    with pytest.raises(UnusableSource, match=f"{tmp_path} holds no shard"):
        find_shards(tmp_path)


def test_a_file_of_an_unknown_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.csv").touch()
    with pytest.raises(UnusableSource, match=r"data\.csv is no shard"):
        find_shards(tmp_path / "data.csv")


@pytest.mark.parametrize("name", ["web.parquet", "web.jsonl", "web.jsonl.gz"])
@pytest.mark.parametrize("columns", [Columns(text="body"), Columns(domain="body")])
def test_a_missing_column_is_named_beside_those_that_are_there(tmp_path: Path, name: str, columns: Columns) -> None:
    path = write(tmp_path / name, ROWS)
    with pytest.raises(UnusableSource, match=rf"{path} has no column 'body' \(its columns: text, topic\)"):
        documents_in(path, columns)


@pytest.mark.parametrize("name", ["web.parquet", "web.jsonl"])
def test_a_missing_column_shows_before_any_work(tmp_path: Path, name: str) -> None:
    (shard,) = find_shards(write(tmp_path / name, ROWS))
    check_readable(shard, Columns())
    with pytest.raises(UnusableSource, match="no column 'body'"):
        check_readable(shard, Columns(text="body"))


def with_byte(content: bytes, position: int, byte: int) -> bytes:
    return content[:position] + bytes([byte]) + content[position + 1 :]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b""),
        ("a.parquet", b"PAR1 and then nothing"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n'),
        ("a.jsonl", b'{"text": "x"}\n["a list"]\n'),
        ("a.jsonl", b'{"text": "x"}\n"a string"\n'),
        ("a.jsonl", b'{"text": "x"}\n{"other": "x"}\n'),
        ("a.jsonl", b'{"text": "\xff\xfe"}\n'),
        ("a.jsonl", b'{"text": "x", "n": ' + b"1" * 5000 + b"}\n"),
        ("a.jsonl", b"[" * 100_000 + b"\n"),
        ("a.jsonl.gz", b"no gzip at all"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 1000)[:-20]),
        ("a.jsonl.gz", with_byte(gzip.compress(b'{"text": "x"}\n' * 1000), 10, 0x07)),
        ("a.jsonl.gz", with_byte(gzip.compress(b'{"text": "x"}\n' * 1000), -5, 0x07)),
        ("a.txt", b"\xff\xfe\x00"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnusableSource, match=str(tmp_path / name)):
        documents_in(tmp_path / name)


@pytest.mark.parametrize("part", [0.5, 0.98])
def test_a_truncated_parquet_is_named(tmp_path: Path, part: float) -> None:
    path = write(tmp_path / "a.parquet", [{"text": f"document {i}"} for i in range(1000)])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(UnusableSource, match=str(path)):
        documents_in(path)


def test_a_parquet_that_is_damaged_inside_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"text": f"document {i * i}"} for i in range(1000)])
    content = bytearray(path.read_bytes())
    content[4:400] = b"\xff" * 396
    path.write_bytes(content)
    with pytest.raises(UnusableSource, match=str(path)):
        documents_in(path)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "text"])
def test_a_shard_that_has_gone_is_named(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UnusableSource, match="gone"):
        list(read_documents(Shard(tmp_path / "gone", kind, "d"), Columns()))
    with pytest.raises(UnusableSource, match="gone"):
        check_readable(Shard(tmp_path / "gone", kind, "d"), Columns())
