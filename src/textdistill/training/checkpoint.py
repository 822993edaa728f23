"""The state of a run, and the file that keeps it so that an interrupted run can go on.

Every random draw of a run is a function of the seed and the outer step (``core/seeding.py``), and so is the order of
the real rows. The step therefore stands for all random streams and for the position in the data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from textdistill.core.files import replacing
from textdistill.distilled import storage
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.untrusted import brief, ordinary_file

FORMAT_VERSION = 1
REMEDY = "remove it to start anew, or restore it from a copy"


@dataclass(frozen=True)
class Checkpoint:
    """A run's state: named tensors, and JSON values (numbers, strings, lists and objects of them)."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


@dataclass(frozen=True)
class CheckpointFile:
    """The safetensors file that keeps the state of a run.

    Attributes:
        path: the file.
        settings: JSON values by dotted key. A run goes on from the file only if its settings are the same.

    """

    path: Path
    settings: Mapping[str, Any]

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces the file; an earlier one stays until the new one is complete and on the disk.

        Args:
            checkpoint: the state; values that are not finite are saved as they are.

        Raises:
            OSError: the file could not be written; the earlier file is unchanged.

        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        text = json.dumps({"state": checkpoint.state, "settings": self.settings})
        metadata = {"format_version": str(FORMAT_VERSION), "json": text, "sha256": checksum(tensors, text)}
        with replacing(self.path) as partial:
            save_file(tensors, partial, metadata)

    def load(self) -> Checkpoint:
        """Reads the file without executing anything in it.

        Returns:
            The state, with its tensors on the CPU.

        Raises:
            ValueError: the file is damaged or has another format version, or the settings differ. The message names
                the keys that differ.

        """
        path = self.path
        with storage.open_tensors(ordinary_file(path.parent, path.name, path.parent)) as file:
            metadata = file.metadata() or {}
            if metadata.get("format_version") != str(FORMAT_VERSION):
                raise ValueError(
                    f"{path}: format_version of a checkpoint must be {FORMAT_VERSION}, got"
                    f" {metadata.get('format_version')!r}; go on with the textdistill release that wrote it"
                )
            storage.header(path, file)
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
        text = metadata.get("json", "")
        if checksum(tensors, text) != metadata.get("sha256"):
            raise ValueError(
                f"{path}: the sha256 of a checkpoint must be the one that it states: it is damaged; {REMEDY}"
            )
        try:
            content = json.loads(text)
            saved, state = content["settings"], content["state"]
            if not (isinstance(saved, dict) and isinstance(state, dict)):
                raise TypeError("settings and state must be objects")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} must hold the state of a run as JSON ({brief(error)}); {REMEDY}") from error
        self._check_settings(saved)
        return Checkpoint(tensors, state)

    def _check_settings(self, saved: Mapping[str, object]) -> None:
        # The saved settings went through JSON, which turns tuples into lists and enums into strings.
        now = json.loads(json.dumps(self.settings))
        keys = [key for key in sorted(saved.keys() | now.keys()) if saved.get(key) != now.get(key)]
        if keys:
            differences = ", ".join(
                f"{brief(key)[1:-1]} (was {brief(saved.get(key))}, now {brief(now.get(key))})" for key in keys[:10]
            )
            raise ValueError(
                f"a run goes on only with the configuration it began with; {self.path} differs in {differences};"
                " restore these keys, or start anew in another base.save_dir"
            )


def checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of named tensors and a text, in hexadecimal; it covers names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # numpy has no bfloat16, so every tensor is hashed as bytes.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass
class Progress:
    """The counters of a run.

    Attributes:
        step: outer steps taken.
        validated: the last step whose set was validated; -1 for none.
        best_step: the step that validation chose.
        best: the metrics of ``best_step``.
        losses: outer losses since the last line of metrics.
        clipped: steps since the last line of metrics that ``train.max_grad_norm`` shortened.
        clipped_steps: all steps that ``train.max_grad_norm`` shortened.
        seconds: training time of earlier processes.
        checkpoint_seconds: time spent on checkpoints.
        mark: position in the tracker's record.

    """

    step: int = 0
    validated: int = -1
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    clipped: int = 0
    clipped_steps: int = 0
    seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    mark: int = 0


class RunState:
    """Everything that an outer step changes, to and from a checkpoint.

    Attributes:
        distilled: the set that is trained.
        optimizer: the outer optimiser.
        scheduler: sets the optimiser's rates.
        scaler: scales float16 gradients.
        progress: the counters.
        best: the raw tensors at ``progress.best_step``.

    """

    def __init__(
        self,
        distilled: DistilledDataset,
        optimizer: Optimizer,
        scheduler: LRScheduler,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.distilled, self.optimizer, self.scheduler, self.scaler = distilled, optimizer, scheduler, scaler
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}

    def checkpoint(self) -> Checkpoint:
        """The present state; its tensors are not copied."""
        tensors = {f"raw.{name}": tensor for name, tensor in self.distilled.raw.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items() if value is not None}
        return Checkpoint(tensors, self._counters())

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Goes back to a state.

        Args:
            checkpoint: the state, of a run with the same configuration.
            path: the file that it was read from, for the error message.

        Raises:
            ValueError: it is not the state of such a run; nothing has changed then.

        """
        parts: dict[str, dict[str, Tensor]] = {"raw": {}, "best": {}, "optimizer": {}}
        for name, tensor in checkpoint.tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        # torch's load_state_dict methods check neither types nor shapes, so everything is checked before the first one.
        if not (self._fits_counters(checkpoint) and self._fits_tensors(parts)):
            raise ValueError(
                f"{path} must hold the counters, tensors and moments of a run of this configuration; {REMEDY}"
            )
        self.progress = Progress(**checkpoint.state["progress"])
        with torch.no_grad():
            for name, tensor in self.distilled.raw.items():
                tensor.copy_(parts["raw"][name])
        self.best = {name: tensor.to(self.distilled.raw[name].device) for name, tensor in parts["best"].items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in parts["optimizer"].items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        self.scheduler.load_state_dict(self.scheduler.state_dict() | checkpoint.state["scheduler"])
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = lr
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint.state["scaler"])

    def _counters(self) -> dict[str, Any]:
        schedule = self.scheduler.state_dict()
        return {
            "progress": asdict(self.progress),
            "scheduler": {name: schedule[name] for name in ("last_epoch", "_step_count", "_last_lr")},
            "scaler": self.scaler.state_dict(),
        }

    def _fits_counters(self, checkpoint: Checkpoint) -> bool:
        return _matches(self._counters(), checkpoint.state) and checkpoint.state["progress"]["step"] >= 0

    def _fits_tensors(self, parts: Mapping[str, Mapping[str, Tensor]]) -> bool:
        raw = _shapes(self.distilled.raw)
        # There are no moments before the first step, and SGD without momentum never has any.
        return (
            len(parts) == 3
            and _shapes(parts["raw"]) == raw
            and _shapes(parts["best"]) in (raw, {})
            and _shapes(parts["optimizer"]) in (_moment_shapes(self.optimizer), {})
        )


Shapes = dict[str, tuple[torch.Size, torch.dtype]]


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _moment_shapes(optimizer: Optimizer) -> Shapes:
    """Shapes of the tensors that an optimiser keeps for its parameters, by their names in a checkpoint."""
    names = ("momentum_buffer",) if isinstance(optimizer, SGD) else ("step", "exp_avg", "exp_avg_sq")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{index}.{name}": (torch.Size(), torch.float32) if name == "step" else (parameter.shape, parameter.dtype)
        for index, parameter in enumerate(parameters)
        for name in names
    }


def _matches(template: object, value: object) -> bool:
    """Whether a JSON value has the keys, lengths and number types of a template.

    An empty list or object in the template matches one of any length that holds numbers. NaN does not match.
    """
    if isinstance(template, dict):
        if not isinstance(value, dict) or (template and template.keys() != value.keys()):
            return False
        return all(_matches(template.get(key, 0.0), item) for key, item in value.items())
    if isinstance(template, list):
        if not isinstance(value, list) or (template and len(template) != len(value)):
            return False
        return all(_matches(template[0] if template else 0.0, item) for item in value)
    # bool is a subclass of int, hence type() and not isinstance().
    if type(value) is int or (type(value) is float and type(template) is not int):
        return abs(value) < 2**63
    return False
