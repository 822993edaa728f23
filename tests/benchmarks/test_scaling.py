"""The scaling benchmark's made-up data and what it measures, on a tiny model."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import scaling
from tests.support.words import VOCABULARY


def test_scaling_measures_a_start_up_steps_and_memory(tmp_path, tiny_bert):
    words = scaling.vocabulary(str(tiny_bert))
    assert set(words) <= set(VOCABULARY)
    scaling.write_data(tmp_path / "data", 1_200, words)
    table = pq.read_table(tmp_path / "data" / "train.parquet")
    lengths = [len(text.split()) for text in table["text"].to_pylist()]
    assert len(lengths) == 1_200
    assert np.median(lengths) == pytest.approx(37, abs=1)
    cold = scaling.measured(str(tiny_bert), tmp_path / "data")
    assert len(list((tmp_path / "data" / "tokens").iterdir())) == 1
    assert set(cold) == {"start_up", "step", "anon_mb", "rss_mb", "peak_mb"}
    assert all(value > 0 for value in cold.values())
    assert cold["anon_mb"] < cold["rss_mb"]
