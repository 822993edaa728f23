"""Fixtures: a tiny BERT with its tokenizer, the toy dataset, MLflow stores, and a stand-in of the hub."""

from __future__ import annotations

import csv
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

# torch and transformers read these variables when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModel, BertTokenizerFast, PreTrainedConfig, PreTrainedTokenizerBase

from tests.support.fixtures import SaveModel, WithStore
from tests.support.forkserver import FRESH, PRELOADED
from tests.support.models import tiny_bert_config
from tests.support.standin import Hub, point_to, serve
from tests.support.words import CLASS_NAMES, CLASS_WORDS, VOCABULARY, toy_rows
from textdistill.data.tokenized import TokenizedSplit
from textdistill.method.learner import Learner, ModelConfig
from textdistill.runs.mlflow_store import ensure_store


@pytest.fixture(scope="session", autouse=True)
def preloaded() -> None:
    """Tells the fork server what to import. ``benchmarks.measure`` sets a shorter list, so this must run after it."""
    FRESH.set_forkserver_preload(PRELOADED)


@pytest.fixture
def process_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Restores arguments, logging and working folder, which the command line changes for its whole process."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.chdir(tmp_path)
    root, verbosity = logging.getLogger(), transformers.logging.get_verbosity()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


@pytest.fixture(scope="session")
def with_store(tmp_path_factory: pytest.TempPathFactory) -> WithStore:
    """Puts an empty MLflow store into a folder. A copy is faster: creating its tables takes longer than a tiny run."""
    made = tmp_path_factory.mktemp("store")
    ensure_store(made)

    def with_store(root: Path) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        shutil.copy(made / "mlflow.db", root)
        return root

    return with_store


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return BertTokenizerFast(vocab={token: i for i, token in enumerate(VOCABULARY)})


@pytest.fixture(scope="session")
def save_model(tokenizer: PreTrainedTokenizerBase) -> SaveModel:
    """Writes an encoder of a configuration. Noise on all weights keeps biases from being exactly 0."""

    def save(config: PreTrainedConfig, folder: Path, **kwargs: bool) -> Path:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            model = AutoModel.from_config(config, **kwargs)
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def tiny_bert(save_model: SaveModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a BERT with 2 layers, width 16 and 4 heads, and its tokenizer."""
    return save_model(tiny_bert_config(), tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def separable_bert(
    tiny_bert: Path, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny BERT with a shared offset in the word embeddings of each class, so that it can learn the toy task."""
    model = AutoModel.from_pretrained(tiny_bert)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        for words in CLASS_WORDS.values():
            embeddings[tokenizer.convert_tokens_to_ids(words)] += torch.randn(embeddings.size(1), generator=draw)
    folder = tmp_path_factory.mktemp("models") / "separable-bert"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_learner(tiny_bert: Path) -> Learner:
    """A learner of 3 classes in float64."""
    return Learner(ModelConfig(model_name=str(tiny_bert)), CLASS_NAMES).to(dtype=torch.float64)


@pytest.fixture(scope="session")
def tiny_learner32(tiny_bert: Path) -> Learner:
    """A learner of 3 classes in float32."""
    return Learner(ModelConfig(model_name=str(tiny_bert)), CLASS_NAMES)


@pytest.fixture(scope="session")
def dropout_learner(tiny_bert: Path) -> Learner:
    """A learner of 3 classes in float64, with dropout enabled."""
    config = ModelConfig(model_name=str(tiny_bert), disable_dropout=False)
    return Learner(config, CLASS_NAMES).to(dtype=torch.float64)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.csv (240 rows) and test.csv (60 rows), columns text and label, classes a, b, c."""
    folder = tmp_path_factory.mktemp("toy-data")
    for name, per_class, seed in (("train", 80, 0), ("test", 20, 1)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(toy_rows(per_class, seed))
    return folder


@pytest.fixture(scope="session")
def toy_split(tokenizer: PreTrainedTokenizerBase) -> TokenizedSplit:
    """30 tokenised rows of the toy task."""
    texts, labels = zip(*toy_rows(10, seed=2), strict=True)
    ids = [np.array(row, dtype=np.int32) for row in tokenizer(list(texts))["input_ids"]]
    return TokenizedSplit(
        ids=np.concatenate(ids),
        offsets=np.cumsum([0, *map(len, ids)]),
        token_types=None,
        labels=np.array([CLASS_NAMES.index(label) for label in labels]),
        pad_token_id=0,
    )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in of the hub. This process talks to the stand-in, with a token that may write."""
    with serve() as hub:
        point_to(hub.url, tmp_path, monkeypatch)
        yield hub
