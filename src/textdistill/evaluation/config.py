"""The settings of the final score: ``evaluate.*``."""

from __future__ import annotations

from dataclasses import dataclass

from textdistill.core.precision import AUTO, Precision, check_half


@dataclass
class EvaluateConfig:
    """The final score: ``evaluate.*``. ``bf16`` is true, false or auto; see ``core.precision``."""

    task_name: str = "ag_news"
    n_eval_model: int = 20
    fp16: bool = False
    bf16: bool | str = AUTO
    tf32: bool = False

    @property
    def precision(self) -> Precision:
        """Precision of the forward passes."""
        return Precision.of(fp16=self.fp16, bf16=self.bf16, tf32=self.tf32)

    def check(self) -> None:
        """Raises ValueError for a value out of range."""
        if self.n_eval_model < 1:
            raise ValueError(f"evaluate.n_eval_model must be at least 1, got {self.n_eval_model}")
        check_half("evaluate", self.fp16, self.bf16)
