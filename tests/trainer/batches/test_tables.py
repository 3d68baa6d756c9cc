import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batches.tables import ROWS_AT_ONCE, find_tables, parquet_writer
from trainer.errors import InvalidTraining


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
    tables = find_tables(write_lines(tmp_path / name, ({"id": i} for i in range(num_rows))))
    assert tables.num_rows == num_rows
    assert [len(batch) for batch in tables.batches()] == [ROWS_AT_ONCE, 5]
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
    tables = find_tables(tmp_path / "rows.parquet")
    assert tables.schema.equals(schema, check_metadata=True)
    assert pa.Table.from_batches(tables.batches()).equals(table)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"id": 1}\n{"id": \n', "cannot be read"),
        ('{"id": 1}\n[2]\n', "line 2 is no JSON object"),
        ('{"id": 1}\n{"id": "one"}\n', "cannot be read"),
        ("", "holds no rows"),
        ("\n \n", "holds no rows"),
    ],
)
def test_damaged_lines_are_named_before_anything_is_read(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(InvalidTraining, match=said):
        find_tables(tmp_path / "rows.jsonl")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    for name in ("rows.parquet", "rows.jsonl.gz"):
        (tmp_path / name).write_bytes(b"no such thing")
        with pytest.raises(InvalidTraining, match=f"{name} cannot be read"):
            find_tables(tmp_path / name)


def test_parquet_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    damaged = pa.array([b"\xff\xfe"]).view(pa.string())
    pq.write_table(pa.table({"text": damaged}), tmp_path / "rows.parquet")
    with pytest.raises(InvalidTraining, match="cannot be read"):
        rows_of(tmp_path / "rows.parquet")


def test_files_whose_columns_do_not_go_together_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": [1], "more": [2]}), tmp_path / "b.parquet")
    with pytest.raises(InvalidTraining, match=r"a\.parquet has other columns"):
        find_tables(tmp_path)
    pq.write_table(pa.table({"id": ["one"]}), tmp_path / "b.parquet")
    with pytest.raises(InvalidTraining, match="do not go together"):
        find_tables(tmp_path)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").touch()
    for source, said in (("text.txt", "is no table"), ("", "holds no table"), ("none", "there is no file")):
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


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    unwritable = pa.schema([("empty", pa.struct([]))])
    for path, schema, said in (
        (tmp_path / "rows.parquet", unwritable, "cannot be written"),
        (tmp_path, pa.schema([]), "it is a folder"),
    ):
        with pytest.raises(InvalidTraining, match=said), parquet_writer(path, schema):
            pass
    assert list(tmp_path.iterdir()) == []
