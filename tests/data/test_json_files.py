"""JSON files as people write them: marks, blanks, mixed types, objects in objects."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from textdistill.data.readers import FileOptions, read_files

ROWS = [{"text": f"é {i}", "label": "ab"[i % 2]} for i in range(6)]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


def read(path: Path, columns: list[str], **options: object) -> list[dict]:
    split = read_files(path, FileOptions(**options))["train"]
    return [row for table in split.scan(columns) for row in table.to_pylist()]


@pytest.mark.parametrize("name", ["train.json", "train.jsonl", "train.ndjson"])
@pytest.mark.parametrize(
    "content", [json.dumps(ROWS), json.dumps(ROWS, indent=1, ensure_ascii=False), LINES, LINES + "\n\n"]
)
@pytest.mark.parametrize("start", ["", "\ufeff", " \n\t", "\ufeff\r\n"])
def test_arrays_and_lines_are_read_whatever_comes_first(tmp_path, name, content, start):
    (tmp_path / name).write_text(start + content, encoding="utf-8")
    assert read(tmp_path / name, ["text", "label"]) == ROWS


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_encodings_and_compression(tmp_path, encoding):
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(LINES.encode(encoding)))
    given = {"encoding": encoding} if encoding == "cp1252" else {}
    assert read(tmp_path / "train.jsonl.gz", ["text", "label"], **given) == ROWS
    if given:
        with pytest.raises(ValueError, match=r"byte 0xe9 in line 1 is not; .*data\.encoding=cp1252"):
            read(tmp_path / "train.jsonl.gz", ["text"])


@pytest.mark.parametrize(
    ("values", "row", "value"),
    [
        (["a", 1], 2, "the number 1"),
        ([1, 2, "x"], 3, 'the string "x"'),
        ([None, True, 0], 3, "the number 0"),
        ([*["a"] * 2500, {"b": 1}], 2501, 'the object {"b": 1}'),
        (["a", ["b"]], 2, r"the list \["),
    ],
)
@pytest.mark.parametrize("array", [True, False])
def test_values_of_two_types_are_refused_with_column_row_and_value(tmp_path, values, row, value, array):
    table = [{"text": "t", "label": label} for label in values]
    content = json.dumps(table) if array else "\n".join(map(json.dumps, table))
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(ValueError, match=rf"column 'label' of .*train\.json must hold .* row {row:,} {value}"):
        read(tmp_path / "train.json", ["label"])
    assert len(read(tmp_path / "train.json", ["text"])) == len(values)


def test_a_line_that_is_no_json_is_refused_with_its_row(tmp_path):
    (tmp_path / "train.jsonl").write_text(LINES + "\nnot json\n")
    with pytest.raises(ValueError, match=r"row 7 is not JSON: Expecting value, got 'not json"):
        read(tmp_path / "train.jsonl", ["text"])


@pytest.mark.parametrize("table", [{"text": {"0": "a"}, "label": {"0": "b"}}, {"data": ROWS}])
def test_one_object_for_all_rows_is_refused(tmp_path, table):
    (tmp_path / "train.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"one object for each row, but holds one object for all.*orient='records'"):
        read(tmp_path / "train.json", ["text"])


NESTED = [{"review": {"body": f"b {i}", "by": {"name": "n"}}, "label": i % 2} for i in range(5)] + [{"label": 1}]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_objects_in_objects_are_columns(tmp_path, suffix):
    file = tmp_path / f"train.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(NESTED), file)
    else:
        file.write_text(json.dumps(NESTED) if suffix == "json" else "\n".join(map(json.dumps, NESTED)))
    assert [*read_files(file)["train"].column_names] == ["review.body", "review.by.name", "label"]
    found = read(file, ["review.by.name", "review.body"])
    assert found == [{"review.by.name": "n", "review.body": f"b {i}"} for i in range(5)] + [
        {"review.by.name": None, "review.body": None}
    ]
