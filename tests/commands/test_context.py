"""The context of a run: the columns that it states, and what it says of the data."""

import logging
from pathlib import Path

import pytest

from tests.support.toy import overrides
from textdistill.commands.distill import distill, resume
from textdistill.config import compose, load_run_config
from textdistill.distilled.dataset import DistilledDataset


@pytest.fixture
def settings(tiny_bert: Path, toy_data: Path, tmp_path: Path) -> list[str]:
    """A run that does not name its columns."""
    named = overrides(tiny_bert, toy_data, tmp_path, f"base.save_dir={tmp_path}/run")
    return [setting for setting in named if not setting.startswith(("data.text_columns", "data.label_column"))]


def test_a_run_says_what_its_data_are(settings, caplog):
    with caplog.at_level(logging.INFO):
        distill(compose(*settings))
    said = [message.partition(":")[0] for message in caplog.messages]
    assert [line for line in said if line in ("rows", "classes in train", "tokens")] == [
        "rows", "classes in train", "tokens",
    ]  # fmt: skip


def test_a_run_states_the_columns_that_were_chosen(settings, tmp_path):
    first = distill(compose(*settings))
    data = load_run_config(tmp_path / "run").data
    assert (data.text_columns, data.label_column) == (["text"], "label")
    stated = DistilledDataset.from_pretrained(tmp_path / "run/distilled").metadata.data
    assert (stated["text_columns"], stated["label_column"]) == (["text"], "label")
    assert resume(tmp_path / "run").metrics == first.metrics
    assert distill(compose(*settings, "train.resume=true")).metrics == first.metrics
