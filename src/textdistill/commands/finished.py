"""The result of a run that just ended, with the set and the report that belong to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path

from textdistill.core.files import replacing
from textdistill.core.processes import Processes
from textdistill.distilled.dataset import DistilledDataset
from textdistill.runs.folder import RunFolder
from textdistill.runs.results import RunResult


@dataclass(frozen=True, repr=False)
class FinishedRun(RunResult):
    """A ``RunResult`` that knows its run folder.

    Attributes:
        run_dir: the run folder.

    """

    run_dir: Path = field(kw_only=True)

    @classmethod
    def of(cls, result: RunResult, run_dir: str | PathLike[str]) -> FinishedRun:
        """Joins the result of a run with its folder."""
        return cls(**vars(result), run_dir=Path(run_dir))

    def __repr__(self) -> str:
        accuracy = self.metrics["accuracy"]
        spread = "" if accuracy.std is None else f" ± {accuracy.std:.4f}"
        return f"FinishedRun(task={self.task!r}, accuracy={accuracy.mean:.4f}{spread}, run_dir={str(self.run_dir)!r})"

    @cached_property
    def distilled(self) -> DistilledDataset:
        """The distilled set that was scored, read when it is first asked for.

        Raises:
            ValueError: the run was a baseline, which has no set.

        """
        if self.baseline is not None:
            raise ValueError(
                f"a baseline has no distilled set, got the result of {self.baseline.baseline}; use distill"
            )
        return DistilledDataset.from_pretrained(
            self.source.distilled if self.source else RunFolder(self.run_dir).distilled
        )

    def report(self, output: str | PathLike[str] | None = None) -> Path:
        """Writes the report of the run, one HTML page that needs no network, and returns its path.

        Args:
            output: the file; None for ``report.html`` in the run folder.

        """
        # A run needs the template engine of the page only here.
        from textdistill.reporting.page import page
        from textdistill.reporting.rows import find_results

        path = self.run_dir / "report.html" if output is None else Path(output)
        text = page(find_results([self.run_dir]), Processes().device)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
        return path
