"""The main job on the VADER movie reviews: distil, evaluate, compare, fine-tune, classify, report.

    python examples/vader.py --output data && python examples/demo.py

(``make demo`` does both). Distils 8,058 sentences into one learned sample per class, prints one table
and writes one page, demo/report.html.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console
from rich.table import Table

from textdistill import baseline, compose, distill, finetune
from textdistill.commands.reports import report
from textdistill.reporting.tables import Format

OUTPUT = Path("demo")
SETTINGS = (
    "data.task_name=vader_movie",
    "data.path=data/vader_movie",
    "model.model_name=minilm-l6",
    "distilled_data.label_type=unrestricted",
    "distilled_data.attention_label_type=cls",
    "distilled_data.seq_length=32",
    "train.max_steps=250",
    "train.n_eval_model=3",
    "evaluate.n_eval_model=10",
    f"base.save_dir_root={OUTPUT}",
)
SENTENCES = (
    "A warm, funny and beautifully acted film that I would gladly watch again.",
    "Two hours of my life that I will never get back: dull, clumsy and far too long.",
)


def main() -> None:
    """Runs the demo; everything it writes is in ``demo/``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    started = time.monotonic()

    def run(name: str) -> Any:
        return compose(*SETTINGS, f"base.save_dir={OUTPUT / name}")

    scores = {
        "distilled, 1 sample per class": distill(run("distilled")),
        "random real samples, 1 per class": baseline("random", run("random")),
        "full data": baseline("full", run("full")),
    }
    tuned = finetune(OUTPUT / "distilled" / "distilled", OUTPUT / "model")
    classify = transformers.pipeline("text-classification", model=tuned.output)

    full = scores["full data"].metrics["accuracy"].mean
    rows = scores["full data"].splits["test"].rows
    table = Table(title=f"VADER movie reviews, MiniLM-L6, accuracy on {rows:,} test sentences")
    for column in ("trained on", "accuracy", "spread", "learners", "of full data"):
        table.add_column(column, justify="left" if column == "trained on" else "right")
    for name, result in scores.items():
        accuracy = result.metrics["accuracy"]
        spread = "" if accuracy.std is None else f"± {accuracy.std:.3f}"
        table.add_row(name, f"{accuracy.mean:.3f}", spread, str(accuracy.n), f"{accuracy.mean / full:.1%}")
    console = Console(width=100)
    console.print(table)
    console.print(f"fine-tuned on the distilled set in {tuned.seconds:.2f} s: {tuned.output}")
    for sentence, answer in zip(SENTENCES, classify(list(SENTENCES)), strict=True):
        console.print(f"  {answer['label']:8} {answer['score']:.2f}  {sentence}")
    page = OUTPUT / "report.html"
    page.write_text(report([OUTPUT], Format.html), encoding="utf-8")
    console.print(f"{(time.monotonic() - started) / 60:.1f} minutes; everything is in {OUTPUT}/")
    console.print(f"report: {page}")


if __name__ == "__main__":
    main()
