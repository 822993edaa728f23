"""Sources: every kind of file, the hub, and files that are refused."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tests.support.tables import labelled, own, rows, save, texts_of
from textdistill.data import json_files, readers, streams
from textdistill.data.task import DataConfig, load_task


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
    assert labelled(task) == {
        text.strip(): ("no", "yes").index(label) for text, label in zip(*table.values(), strict=True)
    }
    assert task.class_names == ("no", "yes")
    assert task.num_labels == 2


def test_a_column_of_numbers_is_text_in_csv(tmp_path):
    lines = [f"{i},{i % 2}" for i in range(30)]
    (tmp_path / "train.csv").write_text("\n".join(["sentence,label", *lines]))
    assert set(labelled(load_task(own(tmp_path), 0))) == {str(i) for i in range(30)}


def test_csv_texts_with_line_breaks_may_cross_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "BLOCK_BYTES", 300)
    table = {"sentence": [f"{i}" + "\nline" * 20 for i in range(60)], "label": [0, 1] * 30}
    write_csv(pa.table(table), tmp_path / "train.csv")
    assert set(labelled(load_task(own(tmp_path), 0))) == set(table["sentence"])


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_larger_than_what_is_read_at_a_time(tmp_path, monkeypatch, suffix):
    """It is read whole, and what Arrow holds meanwhile is a small part of it."""
    table = {"sentence": [f"{i} " + "word " * 200 for i in range(10_000)], "label": [0, 1] * 5_000}
    file = tmp_path / f"train.{suffix}"
    WRITERS[suffix](pa.table(table), file)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 2**16)
    monkeypatch.setattr(readers, "CHUNK_ROWS", 100)
    before, held, texts = pa.total_allocated_bytes(), 0, []
    task = load_task(own(tmp_path), 0)
    for _, chunk in task.chunks():
        held = max(held, pa.total_allocated_bytes() - before)
        texts += chunk["sentence"].to_pylist()
    assert sorted(texts) == sorted(text.strip() for text in table["sentence"])
    assert held < 6e6 < 10e6 < sum(map(len, texts))


@pytest.mark.parametrize(
    ("labels", "class_names"),
    [
        (["0", "1", "10", "2", "3", "4", "5", "6", "7", "8", "9"], tuple(map(str, range(11)))),  # in order of numbers
        (["b", "a", "10", "2"], ("10", "2", "a", "b")),
        (["00", "1"], ("00", "1")),
        (["1", "2", "3"], ("1", "2", "3")),
        (["-1", "1"], ("-1", "1")),
        (["True", "False"], ("False", "True")),
        (["0.5", "1"], ("0.5", "1")),
        (["2020-01-01", "2020-01-02"], ("2020-01-01", "2020-01-02")),
        (["NA", "b"], ("NA", "b")),
    ],
)
def test_the_text_of_a_label_in_csv_is_its_name(tmp_path, monkeypatch, labels, class_names):
    monkeypatch.setattr(streams, "BLOCK_BYTES", 40)  # a block holds one row or two
    lines = [f'text {i},"{labels[i * len(labels) // 60]}"' for i in range(60)]
    (tmp_path / "train.csv").write_text("\n".join(["sentence,label", *lines]))
    assert load_task(own(tmp_path), 0).class_names == class_names


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_other_columns_of_json_may_hold_anything(tmp_path, monkeypatch, suffix):
    others = [None, 1, "x", [1], {"y": None}, 1.5]
    table = [
        {"sentence": f"2020-01-{i + 1:02}", "other": others[i % 6], "label": i % 2} | ({"more": i} if i > 20 else {})
        for i in range(30)
    ]
    lines = json.dumps(table, indent=2) if suffix == "json" else "\n".join(map(json.dumps, table))
    (tmp_path / f"train.{suffix}").write_text(lines)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 150)
    assert set(labelled(load_task(own(tmp_path), 0))) == {row["sentence"] for row in table}


ROW = '{"sentence": "a, ]b[", "label": 0}'


@pytest.mark.parametrize(
    "array",
    [
        "[",
        f"[{ROW}",
        f"[{ROW},",
        f"[{ROW},]",
        f"[{ROW} {ROW}]",
        f"[,{ROW}]",
        f"[{ROW}]]",
        f"[{ROW}] x",
        f"[{ROW}, 1]",
        f"[{ROW}, {ROW[:-4]}]",
        f"[{ROW}, {{}}, {'[' * 100_000}",
    ],
)
@pytest.mark.parametrize("block", [1, 50, 2**24])
def test_broken_json_arrays_are_refused(tmp_path, monkeypatch, array, block):
    monkeypatch.setattr(streams, "BLOCK_BYTES", block)
    (tmp_path / "train.json").write_text(array)
    with pytest.raises(ValueError, match=r"train\.json is empty or broken"):
        load_task(own(tmp_path), 0)


@pytest.mark.parametrize("block", [40, 41, 42, 2**24])
def test_json_arrays_are_cut_anywhere(tmp_path, monkeypatch, block):
    table = [{"sentence": f'{i} [é],{{}}"', "label": i % 2} for i in range(40)]
    monkeypatch.setattr(streams, "BLOCK_BYTES", block)
    (tmp_path / "train.json").write_text(f" {json.dumps(table, ensure_ascii=False)}\n"[1:])
    assert set(labelled(load_task(own(tmp_path), 0))) == {row["sentence"] for row in table}


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


@pytest.mark.parametrize("chunk_rows", [20, 30])
def test_labels_of_two_types_are_refused_whether_or_not_a_chunk_holds_both(tmp_path, monkeypatch, chunk_rows):
    table = rows(40) | {"label": [0] * 20 + ["x"] * 20}
    table = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    (tmp_path / "train.json").write_text(json.dumps(table))
    monkeypatch.setattr(json_files, "CHUNK_ROWS", chunk_rows)
    message = r"column 'label' of .*train\.json must hold .* row 1 holds a number and row 21 the string \"x\"; convert"
    with pytest.raises(ValueError, match=message):
        load_task(own(tmp_path), 0)


# Streaming


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """``datasets.load_dataset`` gives these files in place of the hub's, and says what it was asked for."""
    asked, real = [], datasets.load_dataset

    def load_dataset(*arguments: str, **options: object) -> object:
        asked.append((*arguments, options))
        files = {file.stem: str(file) for file in (tmp_path / "hub").iterdir()}
        kind = next(iter(files.values())).rpartition(".")[2].replace("jsonl", "json")
        return real(kind, data_files=files, **options)

    (tmp_path / "hub").mkdir()
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    return tmp_path / "hub", asked


def streamed(**keys: object) -> DataConfig:
    columns = {"text_columns": ["sentence"], "label_column": "label"}
    return DataConfig(**{"task_name": "user/texts", "streaming": True} | columns | keys)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_streamed_dataset_is_the_task_that_its_files_are(tmp_path, hub, suffix):
    folder, asked = hub
    for name, start in (("train", 0), ("test", 60)):
        WRITERS[suffix](pa.table(rows(60, start=start)), folder / f"{name}.{suffix}")
    saved = tmp_path / "saved"
    task = load_task(streamed(datasets_path=str(saved)), 0)
    local = load_task(own(folder), 0)
    assert task.fingerprint == local.fingerprint
    assert task.class_names == local.class_names
    assert task.sources == local.sources
    assert texts_of(task) == texts_of(local)
    assert asked == [("user/texts", {"streaming": True})]
    assert not saved.exists()  # neither saved nor prepared by datasets
    assert not list((tmp_path / "hf").rglob("*.arrow"))


def test_a_streamed_dataset_knows_its_class_names(hub):
    features = {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    named = datasets.Dataset.from_dict(rows(30), features=datasets.Features(features))
    pq.write_table(named.data.table, hub[0] / "train.parquet")
    assert load_task(streamed(), 0).class_names == ("bad", "good")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (rows(30) | {"label": [-1] * 30}, r"of the train split must not hold -1 in every row"),
        (rows(30) | {"sentence": [None] * 30}, r"has 30 rows without a text \(the first is row 1\)"),
        (
            {"text": ["x", "y"], "label": [0, 1]},
            r"no column 'sentence' .*its columns are text, label",
        ),
        ({"sentence": [], "label": []}, r"data\.streaming must be false for data\.task_name=user/texts"),
    ],
)
def test_streamed_data_that_are_refused(hub, table, message):
    pq.write_table(pa.table(table), hub[0] / "train.parquet")
    with pytest.raises(ValueError, match=message):
        load_task(streamed(), 0)


def test_what_streaming_cannot_do_is_refused(hub, monkeypatch):
    with pytest.raises(ValueError, match=r"data\.num_proc must be 1 with data\.streaming=true.*got 4; leave one"):
        load_task(streamed(num_proc=4), 0)

    def no_stream(*_: object, **__: object) -> None:
        raise NotImplementedError("tar archives")

    monkeypatch.setattr(datasets, "load_dataset", no_stream)
    message = r"data\.streaming must be false for data\.task_name=user/texts, got true.*tar archives\); leave it out"
    with pytest.raises(ValueError, match=message):
        load_task(streamed(), 0)


def test_a_stream_that_breaks_off_names_the_local_way_out(hub, monkeypatch):
    def broken() -> Iterator[dict]:
        yield {"sentence": "a", "label": 0}
        raise ConnectionError("server disconnected")

    stream = datasets.IterableDatasetDict(train=datasets.IterableDataset.from_generator(broken))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    with pytest.raises(FileNotFoundError, match=r"cannot fetch user/texts .*server disconnected.*data\.path="):
        load_task(streamed(), 0)


@pytest.mark.parametrize("key", ["path", "datasets_path"])
def test_streaming_of_what_is_on_disk_is_warned_of(tmp_path, caplog, key):
    path = save(tmp_path / "files", train=rows(60))
    if key == "datasets_path":
        datasets.DatasetDict(train=datasets.Dataset.from_dict(rows(60))).save_to_disk(tmp_path / "saved")
        path = str(tmp_path / "saved")
    with caplog.at_level(logging.WARNING):
        task = load_task(streamed(**{key: path}), 0)
    assert f"data.streaming=true has no effect: data.{key}" in caplog.text
    assert sum(map(len, task.splits.values())) == 60


# Refusals


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
