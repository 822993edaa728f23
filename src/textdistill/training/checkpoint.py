"""What an interrupted run goes on from: its exact state in one file, one writer a run folder, and the signals.

Every random draw of a run is a function of the seed and the outer step (``seeding``), the order of the real
rows too, so the step stands for all random streams and for the position in the data.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from textdistill.core.files import replacing
from textdistill.distilled import storage
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.untrusted import brief, ordinary_file

CHECKPOINT_FILE = "checkpoint.safetensors"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A run's state: named tensors, and what JSON holds (numbers, names, lists of them)."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Writes a state as one safetensors file; an earlier one stays until the new one is whole and on the disk.

    Args:
        path: the file; its folder is created.
        checkpoint: finite values need not be: a diverged state is saved as it is.
        settings: what a run that goes on from here must share; JSON values by dotted key.

    Raises:
        OSError: the disk is full or gone; the earlier file is as it was.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    text = json.dumps({"state": checkpoint.state, "settings": settings})
    metadata = {"format_version": str(FORMAT_VERSION), "json": text, "sha256": _sha256(tensors, text)}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata)


def load_checkpoint(path: Path, settings: Mapping[str, Any]) -> Checkpoint:
    """Reads what ``save_checkpoint`` wrote, executing nothing.

    Args:
        path: the file.
        settings: those of the run that goes on; they must equal those of the run that was interrupted.

    Returns:
        The state; tensors on the CPU.

    Raises:
        ValueError: the file is damaged, of another format version, or the settings differ; the message names
            the keys that do.

    """
    remedy = "remove it to start anew, or restore it from a copy"
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
    if _sha256(tensors, text) != metadata.get("sha256"):
        raise ValueError(f"{path}: the sha256 of a checkpoint must be the one it states: it is damaged; {remedy}")
    try:
        content = json.loads(text)
        saved, state = content["settings"], content["state"]
        if not (isinstance(saved, dict) and isinstance(state, dict)):
            raise TypeError("settings and state are objects")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} must hold the state of a run as JSON ({brief(error)}); {remedy}") from error
    _check_settings(path, saved, settings)
    return Checkpoint(tensors, state)


def _check_settings(path: Path, saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    # Through JSON, as the saved ones were.
    given = json.loads(json.dumps(given))
    differ = [key for key in sorted(saved.keys() | given.keys()) if saved.get(key) != given.get(key)]
    if differ:
        listed = ", ".join(
            f"{brief(key)[1:-1]} (was {brief(saved.get(key))}, now {brief(given.get(key))})" for key in differ[:10]
        )
        raise ValueError(
            f"a run goes on only with the configuration it began with; {path} differs in {listed}; restore"
            " these keys, or start anew in another base.save_dir"
        )


def _sha256(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes whatever the dtype: numpy knows no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass
class Progress:
    """How far a run is: everything that it counts and that JSON holds.

    Attributes:
        step: outer steps made.
        validated: the last step whose set has been validated; -1 for none.
        best_step: the step of the lowest validation loss...
        best: ...and its metrics.
        losses: outer losses since the last line of the log.
        clipped: of those steps, how many ``train.max_grad_norm`` shortened.
        clipped_steps: the same of all steps.
        seconds: spent by earlier processes.
        checkpoint_seconds: spent in checkpoints.
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
    """Everything that an outer step changes, and its way into a checkpoint and back.

    Attributes:
        distilled: the set that is trained.
        optimizer: moves it.
        scheduler: changes the optimiser's rates.
        scaler: of float16 gradients.
        progress: the counters.
        best: the raw tensors at the lowest validation loss so far.

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
        """The state as it is; the tensors are not copied."""
        tensors = {f"raw.{name}": tensor for name, tensor in self.distilled.raw.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items() if value is not None}
        return Checkpoint(tensors, self._state())

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Goes back to a state.

        Args:
            checkpoint: of a run of the same configuration.
            path: where it comes from, for the message.

        Raises:
            ValueError: it is something else; nothing has changed then.

        """
        fits = _is_like(self._state(), checkpoint.state) and checkpoint.state["progress"]["step"] >= 0
        parts: dict[str, dict[str, Tensor]] = {"raw": {}, "best": {}, "optimizer": {}}
        for name, tensor in checkpoint.tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        raw, best, moments = parts["raw"], parts["best"], parts["optimizer"]
        expected = {name: (tensor.shape, tensor.dtype) for name, tensor in self.distilled.raw.items()}
        for found in (raw, best) if best else (raw,):
            fits = fits and {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == expected
        # None at all before the first step, nor ever for SGD without momentum.
        kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in moments.items()}
        if not fits or len(parts) > 3 or (kinds and kinds != _moments(self.optimizer)):
            raise ValueError(
                f"{path} must hold the counters, tensors and moments of a run of this configuration; remove it to"
                " start anew, or restore it from a copy"
            )
        self.progress = Progress(**checkpoint.state["progress"])
        with torch.no_grad():
            for name, tensor in self.distilled.raw.items():
                tensor.copy_(raw[name])
        self.best = {name: tensor.to(self.distilled.raw[name].device) for name, tensor in best.items()}
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in moments.items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        self.scheduler.load_state_dict(self.scheduler.state_dict() | checkpoint.state["scheduler"])
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = lr
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint.state["scaler"])

    def _state(self) -> dict[str, Any]:
        schedule = self.scheduler.state_dict()
        return {
            "progress": asdict(self.progress),
            "scheduler": {name: schedule[name] for name in ("last_epoch", "_step_count", "_last_lr")},
            "scaler": self.scaler.state_dict(),
        }


def _moments(optimizer: Optimizer) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """What an optimiser remembers of its parameters, by the names that ``RunState.checkpoint`` gives."""
    names = ("momentum_buffer",) if isinstance(optimizer, SGD) else ("step", "exp_avg", "exp_avg_sq")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{index}.{name}": (torch.Size(), torch.float32) if name == "step" else (parameter.shape, parameter.dtype)
        for index, parameter in enumerate(parameters)
        for name in names
    }


def _is_like(template: Any, value: Any) -> bool:
    """Whether JSON has the structure of a template, in which an empty list or object stands for any numbers."""
    if isinstance(template, dict):
        if not isinstance(value, dict) or (template and template.keys() != value.keys()):
            return False
        return all(_is_like(template.get(key, 0.0), value[key]) for key in value)
    if isinstance(template, list):
        if not isinstance(value, list) or (template and len(template) != len(value)):
            return False
        return all(_is_like(template[0] if template else 0.0, item) for item in value)
    kinds = (int,) if type(template) is int else (int, float)
    return type(value) in kinds and abs(value) < 2**63  # NaN is not


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM, raised where the state of the run is whole.

    Attributes:
        signum: which of the two.
        whole: False for a second signal, which may have come in the middle of a step.

    """

    def __init__(self, signum: int, message: str = "", whole: bool = True) -> None:
        super().__init__(message)
        self.signum, self.whole = signum, whole


class Interrupts:
    """SIGINT and SIGTERM for the length of a block: noted, and raised only where the block says so.

    A second signal is raised at once, wherever the block is: the last checkpoint then counts.
    """

    def __init__(self) -> None:
        self._noted: int | None = None
        self._open = False

    def __enter__(self) -> Interrupts:
        # Only the main thread may set handlers; elsewhere signals act as before.
        main = threading.current_thread() is threading.main_thread()
        self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if kind is None and self.noted:
            self.stop()

    @property
    def noted(self) -> bool:
        """Whether a signal has come."""
        return self._noted is not None

    def stop(self) -> NoReturn:
        """Raises Interrupted for the signal that has come, here or in another process of the run."""
        raise Interrupted(self._noted or signal.SIGTERM)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block in which a signal is raised when it comes."""
        if self.noted:
            self.stop()
        self._open = True
        try:
            yield
        finally:
            self._open = False

    def _note(self, signum: int, frame: FrameType | None) -> None:
        again = self._noted is not None
        self._noted = signum
        if again or self._open:
            raise Interrupted(signum, whole=self._open)
