"""Two hundred bad configurations and datasets, generated from the schema: each a clear error before any training."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import EnumType
from itertools import product
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from textdistill.commands import distill as commands
from textdistill.commands.context import RunContext
from textdistill.config import RunConfig, compose
from textdistill.training.trainer import Trainer

pytestmark = pytest.mark.slow

# No value of theirs is wrong by itself: names, folders, and what only disagrees with other keys.
FREE = {
    *("data.task_name", "data.path", "data.datasets_path", "data.preprocessed_datasets_path", "data.label_column"),
    *("model.model_name", "distilled_data.pretrained_data_path", "train.save_ckpt_dir"),
    *("evaluate.task_name", "model.task_name", "mlflow.tracking_uri", "mlflow.experiment_name"),
}
# The least value of a count that may be 0 or below.
LEAST = {"base.seed": None, "train.log_interval": -1}
# Ranges of real numbers: a value below, a value above.
OUTSIDE = {
    "distilled_data.attention_loss_lambda": ("0", "-1", "inf", "nan"),
    "distilled_data.lr_init": ("0", "-0.1", "inf", "nan"),
    "train.lr_inputs_embeds": ("-0.1", "inf", "nan"),
    "train.lr_attention_labels": ("-0.1", "inf", "nan"),
    "train.lr_labels": ("-0.1", "inf", "nan"),
    "train.lr_lr": ("-0.1", "inf", "nan"),
    "train.lr_lr_scales": ("-0.1", "inf", "nan"),
    "train.warmup_ratio": ("-0.1", "1.1", "nan"),
    "train.adam_beta2": ("-0.1", "1", "nan"),
    "train.weight_decay": ("-0.1", "inf", "nan"),
    "train.max_grad_norm": ("0", "-1", "nan"),
}


def schema() -> Iterator[tuple[str, Any]]:
    """Every key of the configuration with its type, None taken away."""
    for group, kind in get_type_hints(RunConfig).items():
        keys = {f"{group}.{key}": hint for key, hint in get_type_hints(kind).items()} if is_dataclass(kind) else None
        for key, hint in (keys or {group: kind}).items():
            yield key, get_args(hint)[0] if isinstance(hint, UnionType) else hint


def bad_values() -> Iterator[str]:
    for key, hint in schema():
        if isinstance(hint, EnumType):
            yield from (f"{key}=nonsense", f"{key}=1", f"{key}=[]")
        elif hint is bool:
            yield from (f"{key}=perhaps", f"{key}=2.5")
        elif hint is int:
            yield from (f"{key}=many", f"{key}=1.5", f"{key}=[1]")
            least = LEAST.get(key, 1)
            if least is not None:
                yield from (f"{key}={least - 1}", f"{key}={-(10**6)}")
        elif hint is float:
            yield from (f"{key}=much", f"{key}=[0.1]")
            yield from (f"{key}={value}" for value in OUTSIDE[key])
        elif hint is str and not key.startswith("base.") and key not in FREE:
            yield f"{key}=nonsense"
        elif get_origin(hint) is list:
            yield from (f"{key}=text", f"{key}=[text,label,other]", f"{key}=[]", f"{key}=[nowhere]", f"{key}=[label]")


BAD_KEYS = [f"{f.name}.no_such_key=1" for f in fields(RunConfig)] + ["nonsense=1", "train=fast", "data.path.x=1"]
CONTRADICTIONS = [
    ("train.fp16=true", "train.bf16=true"),
    ("evaluate.fp16=true", "evaluate.bf16=true"),
    ("distilled_data.data_per_label=3", "learner_train.batch_size_per_label=2"),
    ("learner_train.batch_size_per_label=2",),
    ("distilled_data.data_per_label=1000",),
    ("distilled_data.seq_length=65",),
    ("data.max_length=65",),
    ("train.inner_loop=2",),
    ("evaluate.task_name=sst2",),
    ("model.task_name=sst2",),
    ("data.label_column=nowhere",),
    ("data.label_column=text",),
    ("data.path=/nowhere",),
    ("model.model_name=/nowhere",),
    ("model.model_name=nobody/nothing",),
    ("distilled_data.pretrained_data_path=/nowhere",),
    ("data.task_name=agnews", "data.path=null"),
]


def csv(labels: list[str], text: str = "one two") -> str:
    return "text,label\n" + "".join(f"{text},{label}\n" for label in labels)


AB = ["a", "b"] * 20
BAD_FILES: dict[str, bytes] = {
    "train.csv": b"",
    "header/train.csv": b"text,label\n",
    "blank/train.csv": b"\n\n\n",
    "one_class/train.csv": csv(["a"] * 40).encode(),
    "one_row/train.csv": csv(["a"]).encode(),
    "rare/train.csv": csv(["a", "b"] * 20 + ["c"]).encode(),
    "no_label/train.csv": csv(["a", "b", ""] * 20).encode(),
    "blank_label/train.csv": csv(["a", "b", "  "] * 20).encode(),
    "blank_text/train.csv": (csv(AB) + "  ,a\n").encode(),
    "hidden/train.csv": csv(["-1"] * 40).encode(),
    "columns/train.csv": csv(AB).replace("text,", "words,").encode(),
    "ragged/train.csv": csv(AB).encode() + b"a,b,c,d\n",
    "latin/train.csv": csv(AB, "caf\xe9").encode("latin-1"),
    "utf16/train.csv": csv(AB).encode("utf-16-le"),
    "open_quote/train.csv": csv(AB, '"one two').encode(),
    "two_columns/train.csv": csv(AB).replace("label", "text", 1).encode(),
    "cut/train.csv.gz": gzip.compress(csv(AB).encode())[:-20],
    "fake/train.csv.gz": csv(AB).encode(),
    "fake/train.csv.bz2": csv(AB).encode(),
    "fake/train.csv.xz": csv(AB).encode(),
    "fake/train.zip": b"PK and then nothing of the kind",
    "bomb/train.csv.gz": gzip.compress(b"text,label\n" + bytes(2**26)),
    "bomb/train.jsonl.gz": gzip.compress(b'{"text": "' + b"a" * 2**26 + b'"}'),
    "missing_shard/train-00000-of-00002.csv": csv(AB).encode(),
    "config/dataset_dict.json": b'{"splits": ["train"]}',
    "readme/README.md": b"---\nconfigs: 1\n---\n",
    "outside/README.md": b"---\nconfigs:\n- config_name: a\n  data_files: ../../*.csv\n---\n",
    "binary/train.csv": bytes(np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8)),
    "nul/train.csv": b"\0" * 4000,
    "train.parquet": b"PAR1 and then nothing of the kind PAR1",
    "empty/train.parquet": b"",
    "train.json": b'[{"text": "x", "label": "a"',
    "object/train.json": b'{"text": 1}',
    "deep/train.json": b"[" * 100_000,
    "train.jsonl": b'{"text": "x", "label": "a"}\nnot json\n',
    "mixed/train.jsonl": b"".join(
        json.dumps({"text": "x", "label": label}).encode() + b"\n" for label in ["a", 1, None, [2]] * 10
    ),
    "lists/train.jsonl": b"".join(
        json.dumps({"text": ["x"], "label": label}).encode() + b"\n" for label in AB
    ),
    **{
        f"{name}/train.jsonl": b"".join(
            json.dumps({"text": "x", "label": label}).encode() + b"\n" for label in labels * 20
        )
        for name, labels in {"fractions": [0.5, 1], "list_labels": [["a"], ["b"]], "object_labels": [{"a": 1}]}.items()
    },
    "train.xlsx": b"PK",
    "train.txt": b"text\tlabel\nx\ta\n",
    "train.tsv": csv(AB).encode(),
    "test_only/test.csv": csv(AB).encode(),
}  # fmt: skip

CASES: list[tuple[str, ...]] = [
    *((value,) for value in bad_values()),
    *((key,) for key in BAD_KEYS),
    *CONTRADICTIONS,
    # Bad values do not become good in company.
    *product(["train.epoch=0", "data.max_length=2"], ["experiment=reference", "distilled_data.label_type=soft"]),
]


@pytest.fixture
def refused(tiny_bert: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Asserts that overrides are refused before training, with nothing written but an empty folder or the log."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Trainer, "train", lambda *_: pytest.fail("training began"))
    monkeypatch.setattr(RunContext, "score", lambda *_: pytest.fail("scoring began"))
    usual = [
        *("data.task_name=toy", f"data.path={toy_data}", "data.text_columns=[text]", "data.label_column=label"),
        *(f"model.model_name={tiny_bert}", "distilled_data.attention_label_type=cls", "distilled_data.seq_length=8"),
        *("data.max_length=16", "tracking=none", f"base.save_dir={tmp_path}/run", f"base.save_dir_root={tmp_path}"),
        f"data.preprocessed_datasets_path={tmp_path}/cache",
    ]

    def check(*overrides: str) -> str:
        # A key given twice counts as given last.
        given = {override.partition("=")[0]: override for override in [*usual, *overrides]}
        with pytest.raises((ValueError, OSError)) as error:
            commands.distill(compose(*given.values()))
        written = {path.name for path in (tmp_path / "run").rglob("*")} if (tmp_path / "run").exists() else set()
        assert written <= {"run.log"}, written
        message = str(error.value)
        assert len(message) > 20, message
        return message

    return check


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_configuration(overrides: tuple[str, ...], refused: Any) -> None:
    message = refused(*overrides)
    key = overrides[0].partition("=")[0]
    # The key, or at least its last word: a column that is not there is named by its name.
    assert key in message or key.rpartition(".")[2] in message or overrides[0].partition("=")[2].strip("[]") in message


@pytest.mark.parametrize("name", BAD_FILES)
def test_data(name: str, refused: Any, tmp_path: Path) -> None:
    file = tmp_path / "bad" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(BAD_FILES[name])
    message = refused(f"data.path={file.parent if '/' in name else file}")
    assert "data." in message or file.name in message or "split" in message, message
    assert file.read_bytes() == BAD_FILES[name]


def test_there_are_two_hundred() -> None:
    assert len(set(CASES)) == len(CASES)
    assert len(CASES) + len(BAD_FILES) >= 200
