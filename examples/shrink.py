"""Make a set to share from a finished run: large tensors in float16, no local paths, and the score of just that.

    python examples/shrink.py RUN_DIR OUTPUT [key=value ...]

The set is scored once more with the run's configuration (``key=value`` changes it: ``data.path=...``), so that the
card states what the smaller file reaches.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import OmegaConf

from textdistill import DistilledDataset, evaluate
from textdistill.config import load_run_config


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the set to OUTPUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("output", type=Path)
    given, overrides = parser.parse_known_args(argv)
    distilled = DistilledDataset.from_pretrained(given.run_dir / "distilled")
    config = load_run_config(given.run_dir)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config), OmegaConf.from_dotlist(overrides)))
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder, "small")
        distilled.save_pretrained(small, dtype=torch.float16)
        config.base.save_dir = folder
        result = evaluate(small, config)
    stated = result.to_dict()
    scores = {"scores": stated["metrics"], "splits": stated["splits"]}
    distilled.without_local_paths().save_pretrained(given.output, dtype=torch.float16, **scores)
    size = sum(file.stat().st_size for file in given.output.iterdir())
    accuracy = result.metrics["accuracy"]
    print(f"{given.output}: {size / 1e3:,.0f} kB, accuracy {accuracy.mean:.4f} (n={accuracy.n})")


if __name__ == "__main__":
    main()
