import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.corpus.shards.documents import HALF_A_PAIR, NOT_A_STRING, NOT_JSON, NOT_UTF8
from replay_trainer.batches import tables
from replay_trainer.batches.tables import (
    ROWS_AT_ONCE,
    Unusable,
    check_writable,
    find_tables,
    parquet_writer,
    texts_of,
)
from replay_trainer.errors import InvalidTraining
from tests.corpus.shard_files import compressed


def write_lines(path: Path, rows: Iterable[object]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def rows_of(source: Path) -> list[dict[str, Any]]:
    return [row for batch in find_tables(source).batches() for row in batch.to_pylist()]


@given(st.lists(st.fixed_dictionaries({"text": st.text(max_size=9).map(ascii)}, optional={"id": st.integers(0, 99)})))
@settings(max_examples=30, deadline=None)
def test_json_lines_are_read_whole_and_what_a_line_lacks_is_null(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    source = write_lines(tmp_path_factory.mktemp("lines") / "rows.jsonl", [*rows, {"text": "last", "id": 1}])
    expected = [{"text": row["text"], "id": row.get("id")} for row in [*rows, {"text": "last", "id": 1}]]
    assert rows_of(source) == expected


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.ndjson", "rows.jsonl.gz"])
def test_rows_come_in_order_some_at_a_time(tmp_path: Path, name: str) -> None:
    num_rows = ROWS_AT_ONCE + 5
    found = find_tables(write_lines(tmp_path / name, ({"id": i} for i in range(num_rows))))
    assert found.num_rows == num_rows
    assert [len(batch) for batch in found.batches()] == [ROWS_AT_ONCE, 5]
    assert rows_of(tmp_path / name) == [{"id": i} for i in range(num_rows)]


def test_a_column_that_begins_late_is_there_from_the_first_row(tmp_path: Path) -> None:
    late = [{"id": 0, "note": None}] * ROWS_AT_ONCE + [{"id": 0.5, "note": "at last", "more": [1]}]
    batch = next(find_tables(write_lines(tmp_path / "rows.jsonl", late)).batches())
    assert batch.schema.names == ["id", "note", "more"]
    assert batch.to_pylist()[0] == {"id": 0.0, "note": None, "more": None}


def test_text_that_looks_like_a_date_stays_text(tmp_path: Path) -> None:
    rows = [{"text": "2024-05-01 10:00:00"}, {"text": "2024-05-02"}]
    assert rows_of(write_lines(tmp_path / "rows.jsonl", rows)) == rows


def test_a_folder_is_the_tables_in_it_in_name_order(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [2, 3]}), tmp_path / "b.parquet")
    write_lines(tmp_path / "a.jsonl", [{"id": 0}, {"id": 1}])
    (tmp_path / "readme.txt").touch()
    assert [row["id"] for row in rows_of(tmp_path)] == [0, 1, 2, 3]


def test_parquet_keeps_its_types_and_its_metadata(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.int8()), ("kind", pa.dictionary(pa.int8(), pa.string()))], {b"from": b"somewhere"})
    table = pa.table({"id": [1, 2], "kind": ["a", "b"]}, schema)
    pq.write_table(table, tmp_path / "rows.parquet")
    found = find_tables(tmp_path / "rows.parquet")
    assert found.schema.equals(schema, check_metadata=True)
    assert pa.Table.from_batches(found.batches()).equals(table)


@pytest.mark.parametrize("content", ["", "\n \n", "[1]\n", '{"id": '])
def test_a_file_without_any_row_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(InvalidTraining, match="holds no rows"):
        find_tables(tmp_path / "rows.jsonl")


def test_lines_that_are_no_rows_are_null_and_named_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"id": 1}\n{"id": \n\n[2]\n\xff\n{"id": 2}\n')
    found = find_tables(tmp_path / "rows.jsonl")
    assert found.unusable == (
        Unusable("rows.jsonl line 2", NOT_JSON),
        Unusable("rows.jsonl line 4", NOT_JSON),
        Unusable("rows.jsonl line 5", NOT_UTF8),
    )
    assert [row["id"] for row in rows_of(tmp_path)] == [1, None, None, None, 2]


def test_texts_that_cannot_be_read_are_null_and_named(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": "\ud83d"}, {"text": 5}, {"text": None}, {}, {"text": "b"}]
    found = find_tables(write_lines(tmp_path / "rows.jsonl", rows), ["text"])
    assert [(each.place, each.reason) for each in found.unusable] == [
        ("rows.jsonl line 2", HALF_A_PAIR),
        ("rows.jsonl line 3", NOT_A_STRING),
    ]
    (batch,) = found.batches()
    assert texts_of(batch["text"]) == ["a", None, None, None, None, "b"]


@pytest.mark.parametrize("name", ["rows.jsonl.zst", "rows.jsonl.bz2", "rows.json.xz"])
def test_lines_are_read_as_an_ingest_reads_them(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(compressed(tmp_path / name, b'\xef\xbb\xbf{"id": 1}\n{"id": 2}'))
    assert rows_of(tmp_path) == [{"id": 1}, {"id": 2}]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    for name in ("rows.parquet", "rows.jsonl.gz"):
        (tmp_path / name).write_bytes(b"no such thing")
        with pytest.raises(InvalidTraining, match=f"{name} cannot be read"):
            find_tables(tmp_path / name)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_pointer_of_git_lfs_is_no_table(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(InvalidTraining, match=rf"{name} is a Git LFS pointer in place of the file; run `git lfs pull`"):
        find_tables(tmp_path)


def test_parquet_text_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    damaged = pa.array([b"a", b"\xff\xfe"]).view(pa.string())
    pq.write_table(pa.table({"text": damaged}), tmp_path / "rows.parquet")
    assert find_tables(tmp_path, ["text"]).unusable == (Unusable("rows.parquet row 1", NOT_UTF8),)
    assert find_tables(tmp_path).unusable == ()


def test_files_of_other_types_and_columns_are_brought_together(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(["a"]), "id": pa.array([1], pa.int32())}), tmp_path / "a.parquet")
    large = pa.table({"text": pa.array(["b"], pa.large_string()), "id": pa.array([2], pa.int64()), "more": [0.5]})
    pq.write_table(large, tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": pa.array(["c"]), "id": pa.array([None], pa.null())}), tmp_path / "c.parquet")
    write_lines(tmp_path / "d.jsonl", [{"text": "d", "more": None}])
    assert [tuple(row.values()) for row in rows_of(tmp_path)] == [
        ("a", 1, None),
        ("b", 2, 0.5),
        ("c", None, None),
        ("d", None, None),
    ]


def test_files_whose_columns_do_not_go_together_are_refused_with_both_types(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["one"]}), tmp_path / "b.parquet")
    with pytest.raises(InvalidTraining, match=r"'id' holds int64 in a\.parquet and string in b\.parquet"):
        find_tables(tmp_path)


BIG = (1 << 53) + 1


@pytest.mark.parametrize(
    ("values", "others"),
    [
        ([{"a": BIG}], [{"a": 0.5}]),
        ([[BIG]], [[0.5]]),
        ([{"a": [{"b": BIG}]}], [{"a": [{"b": 0.5}]}]),
        ([BIG], [0.5]),
        ([{"a": 1 << 63}], [{"a": -1}]),
        ([{"a": 1}], [{"a": "text"}]),
        ([{"a": []}], [{"a": {}}]),
        ([[1]], [{"a": 1}]),
    ],
)
def test_nested_values_that_no_type_holds_are_kept_as_json_wherever_they_stand(
    tmp_path: Path, values: list[Any], others: list[Any]
) -> None:
    rows = [{"meta": each} for each in values] + [{"meta": None}] * ROWS_AT_ONCE + [{"meta": each} for each in others]
    found = find_tables(write_lines(tmp_path / "rows.jsonl", rows))
    assert found.as_json == ("meta",)
    kept = [row["meta"] for batch in found.batches() for row in batch.to_pylist()]
    assert [json.loads(kept[0]), json.loads(kept[-1])] == [values[0], others[0]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([{"a": BIG}]), pa.array([{"a": 0.5}])),
        (pa.array([[BIG]]), pa.array([[0.5]])),
        (pa.array([BIG]), pa.array([0.5])),
        (pa.array([(1 << 63) + 5], pa.uint64()), pa.array([-1])),
        (pa.array([{"a": 1}]), pa.array([{"a": "text"}])),
    ],
)
def test_values_that_do_not_fit_the_type_of_all_files_are_refused_before_anything_is_read(
    tmp_path: Path, one: pa.Array, other: pa.Array
) -> None:
    pq.write_table(pa.table({"text": ["one"], "meta": one}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["two"], "meta": other}), tmp_path / "b.parquet")
    with pytest.raises(InvalidTraining, match=r"column 'meta' holds .*; write them with one type"):
        find_tables(tmp_path)


def test_lines_that_do_not_fit_the_type_of_a_parquet_file_are_refused_with_their_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one"], "score": [0.5]}), tmp_path / "a.parquet")
    write_lines(tmp_path / "b.jsonl", [{"text": "two", "score": 1}, {"text": "three", "score": BIG}])
    with pytest.raises(InvalidTraining, match=r"b\.jsonl line 2: column 'score' cannot be kept as double"):
        find_tables(tmp_path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_few_rows_of_long_texts_come_at_once(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BYTES_AT_ONCE", 100_000)
    rows = [{"text": random.Random(number).randbytes(10_000).hex(), "id": number} for number in range(40)]
    if name == "rows.jsonl":
        write_lines(tmp_path / name, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name, use_dictionary=False, compression="none")
    sizes = [len(batch) for batch in find_tables(tmp_path / name).batches()]
    assert sum(sizes) == 40 and 3 <= max(sizes) <= 8
    assert rows_of(tmp_path / name) == rows


def test_a_table_with_two_columns_of_a_name_does_not_go_with_others(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["id", "id"])
    pq.write_table(twice, tmp_path / "a.parquet")
    assert find_tables(tmp_path).num_rows == 1
    write_lines(tmp_path / "b.jsonl", [{"id": 1}])
    with pytest.raises(InvalidTraining, match="more than one column 'id'"):
        find_tables(tmp_path)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").touch()
    for source, said in (("text.txt", "holds no table"), ("", "holds no table"), ("none", "there is no file")):
        with pytest.raises(InvalidTraining, match=said):
            find_tables(tmp_path / source)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path, schema = tmp_path / "new" / "rows.parquet", pa.schema([("id", pa.int64())])
    for id_ in (1, 2):
        with parquet_writer(path, schema) as writer:
            writer.write_table(pa.table({"id": [id_]}))
    with pytest.raises(KeyboardInterrupt), parquet_writer(path, schema) as writer:
        writer.write_table(pa.table({"id": [3]}))
        raise KeyboardInterrupt
    assert pq.read_table(path).to_pylist() == [{"id": 2}]
    assert [each.name for each in path.parent.iterdir()] == ["rows.parquet"]


def test_whether_a_file_can_be_written_is_found_out_and_nothing_is_left(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.int64())])
    for path in (tmp_path / "a.parquet", tmp_path / "new/folder/a.parquet"):
        check_writable(path, schema)
    (tmp_path / "file").write_text("")
    unwritable = [(tmp_path, "it is a folder"), (tmp_path / "file/a.parquet", "Not a directory")]
    unwritable += [(tmp_path / f"{'a' * 300}.parquet", "File name too long"), (Path("/proc/a.parquet"), "")]
    for path, said in unwritable:
        with pytest.raises(InvalidTraining, match=f"cannot be written: .*{said}"):
            check_writable(path, schema)
    with pytest.raises(InvalidTraining, match="no child field"):
        check_writable(tmp_path / "a.parquet", pa.schema([("meta", pa.struct([]))]))
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    unwritable = pa.schema([("empty", pa.struct([]))])
    for path, schema, said in (
        (tmp_path / "rows.parquet", unwritable, "cannot be written"),
        (tmp_path, pa.schema([]), "it is a folder"),
    ):
        with pytest.raises(InvalidTraining, match=said), parquet_writer(path, schema):
            pass
    assert list(tmp_path.iterdir()) == []
