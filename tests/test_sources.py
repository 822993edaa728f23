"""Sources: every kind of file, the hub, and files that are refused."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tables import own, rows, save
from textdistill import sources
from textdistill.task import DataConfig, load_task


def write_csv(table: pa.Table, file: Path, delimiter: str = ",") -> None:
    pa.csv.write_csv(table, file, pa.csv.WriteOptions(delimiter=delimiter))


WRITERS = {
    "csv": write_csv,
    "tsv": lambda table, file: write_csv(table, file, "\t"),
    "json": lambda table, file: file.write_text(json.dumps(table.to_pylist(), indent=1)),
    "jsonl": lambda table, file: file.write_text("\n".join(json.dumps(row) for row in table.to_pylist())),
    "parquet": pq.write_table,
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("as_folder", [False, True])
def test_every_kind_of_file_is_read_alike(tmp_path, suffix, as_folder):
    table = rows(30)
    table["label"] = ["yes" if label else "no" for label in table["label"]]
    table["sentence"][:4] = ["1999", "NA", '  two\nlines, "quoted"\t', "é"]
    file = tmp_path / f"{'train' if as_folder else 'texts'}.{suffix}"
    WRITERS[suffix](pa.table(table), file)
    task = load_task(own(tmp_path if as_folder else file), seed=0)
    read = {text: label for split in task.splits.values() for text, label in zip(*columns(split), strict=True)}
    assert read == {text.strip(): ("no", "yes").index(label) for text, label in zip(*table.values(), strict=True)}
    assert task.class_names == ("no", "yes")
    assert task.num_labels == 2


def columns(split: datasets.Dataset) -> tuple[list[str], list[int]]:
    return split[:]["sentence"], split[:]["labels"]


def test_a_column_of_numbers_is_text_in_csv(tmp_path):
    lines = [f"{i},{i % 2}" for i in range(30)]
    (tmp_path / "train.csv").write_text("\n".join(["sentence,label", *lines]))
    assert set(load_task(own(tmp_path), 0).splits["train"][:]["sentence"]) <= {str(i) for i in range(30)}


def test_csv_texts_with_line_breaks_may_cross_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_BLOCK", 300)
    table = {"sentence": [f"{i}" + "\nline" * 20 for i in range(60)], "label": [0, 1] * 30}
    write_csv(pa.table(table), tmp_path / "train.csv")
    splits = load_task(own(tmp_path), 0).splits.values()
    assert {text for split in splits for text in split[:]["sentence"]} == set(table["sentence"])


def test_categories_are_read_as_strings(tmp_path):
    labels = pa.array(["no", "yes"] * 15).dictionary_encode()
    path = save(tmp_path, train={"sentence": rows(30)["sentence"], "label": labels})
    assert load_task(own(path), 0).class_names == ("no", "yes")


def test_datasets_path_is_read_and_else_filled_from_the_hub(tmp_path, monkeypatch):
    splits = datasets.DatasetDict(
        train=datasets.Dataset.from_dict(rows(40)), test=datasets.Dataset.from_dict(rows(10, start=40))
    )
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **_: asked.append(args) or splits)
    config = DataConfig(
        "user/texts", text_columns=["sentence"], label_column="label", datasets_path=str(tmp_path / "a/saved")
    )
    first, second = load_task(config, 0), load_task(config, 0)
    assert asked == [("user/texts",)]
    assert first.fingerprint == second.fingerprint
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["saved"]


def test_hub_failure_names_the_local_way_out(monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(FileNotFoundError, match=r"cannot fetch nyu-mll/glue sst2 .*no route.*data\.path="):
        load_task(DataConfig("sst2"), 0)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_empty_files_are_refused(tmp_path, suffix):
    file = tmp_path / f"train.{suffix}"
    file.touch()
    with pytest.raises(ValueError, match=rf"train\.{suffix} is empty or broken"):
        load_task(own(file), 0)


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "texts.xlsx").touch()
    with pytest.raises(ValueError, match=r"data\.path must end in one of \.csv, .*texts\.xlsx"):
        load_task(own(tmp_path / "texts.xlsx"), 0)
    with pytest.raises(ValueError, match=r"split called train .*got none"):
        load_task(own(tmp_path), 0)


def test_two_files_of_a_split_are_refused(tmp_path):
    save(tmp_path, train=rows(40))
    (tmp_path / "train.csv").write_text("sentence,label\n")
    with pytest.raises(ValueError, match=r"one file a split, got train\.csv and train\.parquet"):
        load_task(own(tmp_path), 0)
