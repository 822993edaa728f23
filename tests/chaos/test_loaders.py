"""Folders from strangers: thousands of damaged, lying and hostile ones, each refused by name or read unchanged.

A further kind of artefact is one more entry of ``ARTEFACTS``. ``TEXTDISTILL_FUZZ_EXAMPLES`` sets the number of
examples of the whole module.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
import pickle
import signal
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from transformers import get_scheduler

from tests.support.toy import write_reference_folder
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.spec import DistilledDataConfig, LabelType, LearnerTrainConfig, ModelMetadata, SetMetadata
from textdistill.method.attention import AttentionLabelType
from textdistill.training.checkpoint import CheckpointFile, RunState, checksum
from textdistill.training.config import TrainConfig
from textdistill.training.outer_step import make_optimizer

pytestmark = pytest.mark.slow

# Some mutations have fewer cases than their share: the default makes more than 5,000 examples in all.
EXAMPLES = int(os.environ.get("TEXTDISTILL_FUZZ_EXAMPLES", "7000"))
MAX_MEMORY = 500 * 2**20
MAX_SECONDS = 60
MAX_MESSAGE = 2000

# --- what is fuzzed


@dataclass(frozen=True)
class Link:
    """A symbolic link in place of a file."""

    target: str


@dataclass(frozen=True)
class Special:
    """A named pipe (``fifo``) or a folder (``folder``) in place of a file."""

    kind: str


Files = dict[str, "bytes | Link | Special"]
Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Artefact:
    """A kind of folder.

    Attributes:
        write: writes a valid one into an existing empty folder.
        load: reads it as a user does.
        same: whether two loaded ones are equal.
        assert_valid: fails if the first is not like any other, or holds other tensors than the second.
        sealed: files of which no bit can change unnoticed.
        mutations: names of the functions below that apply to it.

    """

    write: Callable[[Path], None]
    load: Callable[[Path], Any]
    same: Callable[[Any, Any], bool]
    assert_valid: Callable[[Any, Any], None]
    sealed: frozenset[str]
    mutations: tuple[str, ...]


def a_set() -> DistilledDataset:
    """2 classes, 2 samples each, 3 positions, width 4, 2 layers, 3 heads, 2 steps."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "inputs_embeds": (4, 3, 4),
        "labels": (4, 2),
        "lr": (2,),
        "lr_scales": (2, 3),
        "attention_labels": (4, 2, 3, 1, 3),
    }
    raw = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    config = DistilledDataConfig(
        data_per_label=2, seq_length=3, label_type=LabelType.soft, attention_label_type=AttentionLabelType.cls
    )
    model = ModelMetadata(
        "some/model", None, embedding_size=4, num_layers=2, num_heads=3, parameters=("body.a", "body.b", "head")
    )
    metadata = SetMetadata("toy", ("no", "yes"), model, {"path": "x"}, {"seed": 1, "accuracy": 1e-05})
    return DistilledDataset(raw, config, LearnerTrainConfig(2, 1), metadata)


def same_set(one: DistilledDataset, other: DistilledDataset) -> bool:
    return same_tensors(one, other) and all(
        getattr(one, name) == getattr(other, name) for name in ("config", "inner_config", "metadata")
    )


def same_tensors(one: DistilledDataset, other: DistilledDataset) -> bool:
    return same_named(one.raw, other.raw)


def same_named(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# By the documentation of the format, not by the code.
COUNTS = {"data_per_label", "seq_length", "train_step", "batch_size_per_label"}
SWITCHES = {"lr_for_step", "lr_for_parameter", "lr_linear_decay", "fix_order"}
NUMBERS = {"attention_loss_lambda", "lr_init"}


def assert_valid_set(distilled: DistilledDataset, original: DistilledDataset) -> None:
    """What a set may be whose metadata was changed and sealed again: of the right types, and like any other."""
    assert same_tensors(distilled, original)
    assert_ordinary_set(distilled)


def assert_valid_reference_set(distilled: DistilledDataset, original: DistilledDataset) -> None:
    """The reference's format has no checksums, so a changed pickle may name other numbers of the same file."""
    shapes, expected = ({name: t.shape for name, t in one.raw.items()} for one in (distilled, original))
    assert shapes == expected
    assert_ordinary_set(distilled)


def assert_ordinary_set(distilled: DistilledDataset) -> None:
    for group in (distilled.config, distilled.inner_config):
        for name in (field.name for field in fields(group)):
            value = getattr(group, name)
            if name in COUNTS:
                assert type(value) is int
                assert value >= 1
            elif name in SWITCHES:
                assert type(value) is bool
            elif name in NUMBERS:
                assert type(value) is float
                assert math.isfinite(value)
            else:
                assert value is None or isinstance(value, str)
    metadata = distilled.metadata
    assert type(metadata.task) is str
    assert type(metadata.class_names) is tuple
    assert all(type(name) is str for name in metadata.class_names)
    assert len(set(metadata.class_names)) == len(metadata.class_names) == distilled.raw["labels"].shape[1]
    assert type(metadata.model.name) is str
    assert metadata.model.revision is None or type(metadata.model.revision) is str
    assert all(type(getattr(metadata.model, key)) is int for key in ("embedding_size", "num_layers", "num_heads"))
    assert all(type(name) is str for name in metadata.model.parameters)
    assert (distilled.lr > 0).all()
    assert all(tensor.isfinite().all() for tensor in distilled.raw.values())
    with tempfile.TemporaryDirectory() as folder:
        distilled.save_pretrained(Path(folder, "again"))
        assert same_set(DistilledDataset.from_pretrained(Path(folder, "again")), distilled)


def new_state() -> RunState:
    distilled = a_set()
    optimizer = make_optimizer(distilled, TrainConfig())
    scheduler = get_scheduler("linear", optimizer, 1, 10)
    return RunState(distilled, optimizer, scheduler, torch.amp.GradScaler("cpu", enabled=False))


def a_state() -> RunState:
    """The state of a run of ``a_set`` after a step."""
    state = new_state()
    for tensor in state.distilled.raw.values():
        tensor.grad = torch.full_like(tensor, 0.5)
    state.optimizer.step()
    state.scheduler.step()
    state.progress.step, state.progress.losses, state.progress.best = 1, [0.5], {"loss": 0.25}
    state.best = {name: tensor.detach().clone() for name, tensor in state.distilled.raw.items()}
    return state


def checkpoint_file(folder: Path) -> CheckpointFile:
    return CheckpointFile(folder / "checkpoint.safetensors", {"train.epoch": 1})


def go_on(folder: Path) -> RunState:
    file = checkpoint_file(folder)
    state = new_state()
    state.restore(file.load(), file.path)
    return state


def same_state(one: RunState, other: RunState) -> bool:
    a, b = one.checkpoint(), other.checkpoint()
    return a.state == b.state and same_named(a.tensors, b.tensors)


def assert_valid_state(state: RunState, original: RunState) -> None:
    """What a run may go on from: the tensors of the original, and any numbers."""
    assert same_named(state.checkpoint().tensors, original.checkpoint().tensors)
    assert type(state.progress.step) is int
    assert state.progress.step >= 0
    assert sum(state.progress.losses) is not None
    state.optimizer.step()
    state.scheduler.step()


DAMAGE = ("flip", "truncate", "append", "overwrite", "replace", "no_ordinary_file", "card_values", "card_text")

ARTEFACTS = {
    "distilled": Artefact(
        write=lambda folder: a_set().save_pretrained(folder),
        load=DistilledDataset.from_pretrained,
        same=same_set,
        assert_valid=assert_valid_set,
        sealed=frozenset({"config.json", "distilled.safetensors"}),
        mutations=(*DAMAGE, "header_lies", "header_and_card_lie", "tensor_values"),
    ),
    "reference": Artefact(
        write=lambda folder: write_reference_folder(folder, a_set()),
        load=DistilledDataset.from_pretrained,
        same=same_set,
        assert_valid=assert_valid_reference_set,
        sealed=frozenset(),
        mutations=(*DAMAGE, "archive", "pickle_bytes", "hostile_pickle", "other_tensors"),
    ),
    "checkpoint": Artefact(
        write=lambda folder: checkpoint_file(folder).save(a_state().checkpoint()),
        load=go_on,
        same=same_state,
        assert_valid=assert_valid_state,
        sealed=frozenset({"checkpoint.safetensors"}),
        mutations=("flip", "truncate", "append", "overwrite", "replace", "no_ordinary_file", "state_values"),
    ),
}

# --- mutations: each changes ``files`` and returns what may be read from them, if anything


class Outcome(Enum):
    """Refused in any case, or ..."""

    damaged = "refused if a sealed file has changed; else as ``valid``"
    same = "equal to the original"
    valid = "of the original's tensors and another valid card"


def any_file(draw: Draw, files: Files) -> str:
    return str(draw(st.sampled_from(sorted(files))))


def flip(draw: Draw, files: Files) -> Outcome:
    name = any_file(draw, files)
    data = bytearray(files[name])
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 8]))):
        data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    files[name] = bytes(data)
    return Outcome.damaged


def truncate(draw: Draw, files: Files) -> Outcome:
    name = any_file(draw, files)
    files[name] = files[name][: draw(st.integers(0, len(files[name]) - 1))]
    return Outcome.damaged


def append(draw: Draw, files: Files) -> Outcome:
    name = any_file(draw, files)
    files[name] += draw(st.binary(min_size=1, max_size=64)) * draw(st.sampled_from([1, 1, 100, 20_000]))
    return Outcome.damaged


def overwrite(draw: Draw, files: Files) -> Outcome:
    name = any_file(draw, files)
    start, data = draw(st.integers(0, len(files[name]))), draw(st.binary(min_size=1, max_size=16))
    files[name] = files[name][:start] + data + files[name][start + len(data) :]
    return Outcome.damaged


def replace(draw: Draw, files: Files) -> Outcome:
    name = any_file(draw, files)
    others = st.one_of(st.just(b""), st.binary(max_size=300), st.sampled_from(sorted(map(bytes, files.values()))))
    files[name] = draw(others)
    return Outcome.damaged


def no_ordinary_file(draw: Draw, files: Files) -> Outcome:
    name = any_file(draw, files)
    other = draw(
        st.sampled_from(
            [
                None,
                Special("fifo"),
                Special("folder"),
                *map(Link, ("../outside", "absent", name, "/dev/zero", "/dev/tty", "/dev/fd/0", "..", "../pipe")),
                *map(Link, ("/proc/self/mem", "/proc/self/environ", "copy", sorted(files)[0], "a/" * 2000)),
            ]
        )
    )
    if other is None:
        del files[name]
    else:
        if other == Link("copy"):  # within the folder, of the same content: may be read
            files["copy"] = files[name]
        files[name] = other
    return Outcome.same


HOSTILE_VALUES: list[Any] = [
    *(None, True, False, "", "1", "none", "x" * 100_000, "\ud800", "../../etc/passwd", "\x00"),
    *(0, 1, 2, 3, -1, 2**31, 2**62, 2**63, 10**400, 0.0, -0.5, 1.5, 1e308, math.nan, math.inf, -math.inf),
    *([], {}, [[]], {"": {}}, ["no", "no"], ["no", 1], ["no", None], ["x" * 100_000, "y"], list(range(1000))),
    *({"name": "x"}, {"x" * 10_000: 1}, {str(i): i for i in range(1000)}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within a JSON value, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from places(child, (*path, key))


def nested(depth: int) -> Any:
    value: Any = 1
    for i in range(depth):
        value = [value] if i % 2 else {"x": value}
    return value


def seal(card: Any) -> bytes:
    """The bytes of config.json, its checksum recomputed as documented if it has one."""
    card = copy.deepcopy(card)
    if isinstance(card, dict) and "config_sha256" in card:
        card = {"config_sha256": "0" * 64, **{key: value for key, value in card.items() if key != "config_sha256"}}
    data = json.dumps(card).encode()
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


def card_values(draw: Draw, files: Files) -> Outcome:
    """Wrong values, missing and unknown keys, in a card whose checksum is right."""
    card = json.loads(files["config.json"])
    for _ in range(draw(st.sampled_from([1, 1, 2, 4]))):
        *path, key = draw(st.sampled_from(list(places(card))[1:]))
        parent = card
        for step in path:
            parent = parent[step]
        match draw(st.sampled_from(["value", "value", "value", "deep", "delete", "unknown", "swap"])):
            case "value":
                parent[key] = copy.deepcopy(draw(st.sampled_from(HOSTILE_VALUES)))
            case "deep":
                parent[key] = nested(draw(st.sampled_from([15, 25, 60])))
            case "delete":
                del parent[key]
            case "unknown":
                if isinstance(parent, dict):
                    parent[draw(st.sampled_from(["revision", "check", "__class__", "self", "x" * 50_000]))] = 1
            case "swap":
                parent[key] = draw(st.sampled_from([copy.deepcopy(card), json.dumps(parent[key])]))
        if len(card) < 2:
            break
    files["config.json"] = seal(card)
    return Outcome.valid


def state_values(draw: Draw, files: Files) -> Outcome:
    """Wrong values, missing and unknown keys and tensors, in a checkpoint whose checksum is right."""
    data = bytes(files["checkpoint.safetensors"])
    tensors, metadata = from_safetensors(data), json.loads(split_header(data)[0]["__metadata__"]["json"])
    if draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from(sorted(tensors)))
        tensor = tensors.pop(name)
        others = [tensor.double(), tensor[None], tensor.flatten()[:0], tensor.to(torch.int64), torch.zeros(2, 2)]
        key = draw(st.sampled_from([name, "raw.x", "best.lr", "optimizer.x.step", "optimizer.9.step", "", "x.y", "."]))
        tensors[key] = draw(st.sampled_from(others))
    else:
        *path, key = draw(st.sampled_from([place for place in places(metadata) if place]))
        parent = metadata
        for step in path:
            parent = parent[step]
        if draw(st.integers(0, 4)):
            values = [value for value in HOSTILE_VALUES if value != "\ud800"]
            parent[key] = copy.deepcopy(draw(st.sampled_from(values)))
        else:
            del parent[key]
    text = json.dumps(metadata)
    sealed = {"format_version": "1", "json": text, "sha256": checksum(tensors, text)}
    files["checkpoint.safetensors"] = to_safetensors(tensors, sealed)
    return Outcome.valid


def card_text(draw: Draw, files: Files) -> Outcome:
    """What only the text of a card can say."""
    text = bytes(files["config.json"])
    depth = draw(st.integers(1, 100_000))
    files["config.json"] = draw(
        st.sampled_from(
            [
                b"[" * depth + b"]" * depth,
                b'{"a":' * depth + b"1" + b"}" * depth,
                b"[" * depth,
                b"[" + b"[]," * min(4 * depth, 340_000) + b"[]]",
                b"[" * depth + b",".join([b"[]"] * 1000),
                text + b" " * (2**20 + depth),
                b" " * depth + text,
                text.replace(b"1", b"1" * depth, 1),
                text.replace(b"1,", b"1e%d," % depth, 1),
                text.replace(b"2", b"NaN", 1),
                text.replace(b"true", b"-Infinity", 1),
                text.replace(b"{", b"{" + b'"format_version": 1, ' * min(depth, 10_000), 1),
                text.decode().encode("utf-16"),
                text.decode().encode("utf-32-le"),
                b"\xef\xbb\xbf" + text,
                text.replace(b'"', b'"\xff', 1),
            ]
        )
    )
    return Outcome.damaged


def split_header(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_header(text: bytes, data: bytes, claimed: int | None = None) -> bytes:
    return (len(text) if claimed is None else claimed).to_bytes(8, "little") + text + data


def reseal(files: Files, declared: Any = None) -> None:
    """Checksums, and what the card declares, as they would be had the tensors been saved so."""
    card = json.loads(files["config.json"])
    card["sha256"] = hashlib.sha256(bytes(files["distilled.safetensors"])).hexdigest()
    if declared is not None:
        card["tensors"] = declared
    files["config.json"] = seal(card)


SIZES = [-1, 0, 1, 3, 5, 2**20, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**400, 1.0, None, "4"]


def lie(draw: Draw, files: Files) -> tuple[bytes, dict[str, Any]]:
    """A changed header as text, and as it reads."""
    header, _ = split_header(files["distilled.safetensors"])
    name = draw(st.sampled_from(sorted(header)))
    entry = header[name]
    match draw(st.sampled_from(["shape", "dtype", "offsets", "rename", "drop", "copy", "metadata", "nest", "type"])):
        case "shape":
            sizes = st.one_of(st.sampled_from(SIZES), st.sampled_from(entry["shape"]))
            entry["shape"] = draw(st.lists(sizes, max_size=6))
        case "dtype":
            kinds = ["F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F4", "C64", "f32", "", None, 1]
            entry["dtype"] = draw(st.sampled_from(kinds))
        case "offsets":
            offsets = st.one_of(st.sampled_from(SIZES), st.integers(0, 400))
            entry["data_offsets"] = draw(st.lists(offsets, min_size=1, max_size=3))
        case "rename":
            header[draw(st.sampled_from(["", "../x", "x" * 100_000, "__metadata__", "lr ", "\x00"]))] = header.pop(name)
        case "drop":
            del header[name]
        case "copy":
            header["again"] = entry
        case "metadata":
            header["__metadata__"] = draw(st.sampled_from([{"a": "b"}, {"a": 1}, [], "x", {"a": "x" * 100_000}, None]))
        case "nest":
            header[name] = nested(draw(st.sampled_from([1, 100, 900])))
        case "type":
            header[name] = draw(st.sampled_from(HOSTILE_VALUES))
    text = json.dumps(header).encode()
    if draw(st.integers(0, 4)) == 0:  # one key twice
        twin = json.dumps({name: draw(st.sampled_from([*HOSTILE_VALUES, entry]))}).encode()
        text = draw(st.sampled_from([twin[:-1] + b", " + text[1:], text[:-1] + b", " + twin[1:]]))
    return text, header


def header_lies(draw: Draw, files: Files) -> Outcome:
    """The header, or its length, changes; the card does not, except perhaps for a right checksum."""
    text, _ = lie(draw, files)
    _, data = split_header(files["distilled.safetensors"])
    claims = [len(text)] * 4 + [0, 1, len(text) + 8, 2**20 - 1, 2**25, 10**8, 2**40, 2**63, 2**64 - 1]
    files["distilled.safetensors"] = join_header(text, data, draw(st.sampled_from(claims)))
    if draw(st.booleans()):
        reseal(files)
        return Outcome.valid
    return Outcome.damaged


def header_and_card_lie(draw: Draw, files: Files) -> Outcome:
    """Header, card and checksums agree with each other, but not with the data or with the rest of the card."""
    text, header = lie(draw, files)
    _, data = split_header(files["distilled.safetensors"])
    if draw(st.booleans()):  # the data follow too
        ends = [e["data_offsets"][-1] for e in header.values() if isinstance(e, dict) and e.get("data_offsets")]
        sizes = [end for end in ends if type(end) is int and 0 <= end < 2**20]
        data = data.ljust(max(sizes, default=0), b"\0")
    files["distilled.safetensors"] = join_header(text, data)
    declared = {
        name: {"shape": entry.get("shape"), "dtype": entry.get("dtype")}
        for name, entry in header.items()
        if isinstance(entry, dict)
    }
    reseal(files, declared)
    return Outcome.valid


def tensor_values(draw: Draw, files: Files) -> Outcome:
    """Other values, shapes and dtypes, saved well: only what they are can be wrong."""
    tensors = from_safetensors(bytes(files["distilled.safetensors"]))
    name = draw(st.sampled_from(sorted(tensors)))
    match draw(st.sampled_from(["value", "value", "dtype", "shape", "empty"])):
        case "value":
            value = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
            tensors[name].view(-1)[draw(st.integers(0, tensors[name].numel() - 1))] = value
        case "dtype":  # 1e300 is finite only until it becomes float32
            tensors[name] = torch.full_like(tensors[name], 1e300, dtype=torch.float64)
        case "shape":
            tensors[name] = tensors[name].reshape(draw(st.sampled_from([(-1,), (1, -1), (-1, 1), (-1, 2)])))
        case "empty":
            tensors[name] = tensors[name][:0]
    files["distilled.safetensors"] = to_safetensors(tensors)
    header, _ = split_header(files["distilled.safetensors"])
    reseal(files, {key: {"shape": entry["shape"], "dtype": entry["dtype"]} for key, entry in header.items()})
    return Outcome.same


# --- mutations of the reference's archive


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(contents: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in contents:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return buffer.getvalue()


def archive(draw: Draw, files: Files) -> Outcome:
    """Another archive of the same or other members."""
    contents = list(members(files["data_dict"]).items())
    compression = draw(st.sampled_from([zipfile.ZIP_STORED] * 3 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]))
    index = draw(st.integers(0, len(contents) - 1))
    name, data = contents[index]
    match draw(st.sampled_from(["as it is", "drop", "twice", "cut", "rename", "order", "script"])):
        case "drop":
            del contents[index]
        case "twice":
            contents.append((name, data))
        case "cut":
            contents[index] = (name, data[: draw(st.integers(0, len(data)))])
        case "rename":
            other = draw(st.sampled_from(["../x", "/x", "DATA.PKL", "", "data.pkl", "other/data.pkl", "x" * 60_000]))
            contents[index] = (other, data)
        case "order":
            contents.reverse()
        case "script":  # what a TorchScript archive is known by
            contents.append((name.partition("/")[0] + "/constants.pkl", data))
    files["data_dict"] = pack(contents, compression)
    if draw(st.integers(0, 3)) == 0:
        files["data_dict"] = draw(st.binary(min_size=1, max_size=30)) + files["data_dict"]
    return Outcome.same


def with_pickle(files: Files, data: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    contents = members(files["data_dict"])
    return pack([(name, data if name.endswith("data.pkl") else old) for name, old in contents.items()], compression)


def pickle_bytes(draw: Draw, files: Files) -> Outcome:
    """Damage to the pickle that the archive's checksums do not show."""
    (data,) = (data for name, data in members(files["data_dict"]).items() if name.endswith("data.pkl"))
    part = {"pickle": data}
    for _ in range(draw(st.sampled_from([1, 1, 2, 4]))):
        if part["pickle"]:
            draw(st.sampled_from([flip, overwrite, append, truncate]))(draw, part)
    files["data_dict"] = with_pickle(files, part["pickle"])
    return Outcome.valid


class Touch:
    """Unpickled the ordinary way, it creates a file."""

    def __init__(self, call: tuple[Any, ...]) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


def string(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def executing_pickles(marker: Path) -> dict[str, bytes]:
    """Pickles that create ``marker`` where they are run."""
    command, code = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    touch = pickle.dumps(Touch((Path.touch, (marker,))), protocol=2)
    return {
        "os.system": b"cos\nsystem\n(" + string(command) + b"tR.",
        "posix.system": b"\x80\x02cposix\nsystem\n" + string(command) + b"\x85R.",
        "exec": b"\x80\x02cbuiltins\nexec\n" + string(code) + b"\x85R.",
        "__builtin__.eval": b"\x80\x02c__builtin__\neval\n" + string(f"{code}") + b"\x85R.",
        "protocol 4": pickle.dumps(Touch((os.system, (command,))), protocol=4),
        "protocol 0": pickle.dumps(Touch((os.system, (command,))), protocol=0),
        "INST": b"(" + string(command) + b"ios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + string(command) + b"o.",
        "within a dict": b"\x80\x02}q\x00" + string("lr") + touch[2:-1] + b"s.",
        "as a class of a tensor": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\n"
        + b"cbuiltins\nint\n"
        + string(command)
        + b"\x85}tR.",
        "pickle in a pickle": b"\x80\x02cpickle\nloads\nc_codecs\nencode\n"
        + string(touch.decode("latin1"))
        + string("latin1")
        + b"\x86R\x85R.",
        "torch.storage._load_from_bytes": b"\x80\x02ctorch.storage\n_load_from_bytes\nc_codecs\nencode\n"
        + string(legacy(touch).decode("latin1"))
        + string("latin1")
        + b"\x86R\x85R.",
    }


def legacy(pickled: bytes) -> bytes:
    """The file that torch.save wrote before it wrote archives, around a pickle."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    return b"".join(pickle.dumps(part, protocol=2) for part in head) + pickled + pickle.dumps([], protocol=2)


def rebuilt(numel: int, size: tuple[int, ...], stride: tuple[int, ...], key: str = "0", kind: str = "Float") -> bytes:
    """The pickle of a dict of one tensor, whatever its storage holds."""

    def number(value: int) -> bytes:
        data = value.to_bytes(9, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = (
        b"(" + string("storage") + f"ctorch\n{kind}Storage\n".encode() + string(key) + string("cpu") + number(numel)
    )
    return (
        b"\x80\x02}" + string("lr") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + number(0)
        + numbers(size) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)RtRs."
    )  # fmt: skip


def greedy_pickles() -> dict[str, bytes]:
    """Pickles that run nothing and would take memory: more than ``MAX_MEMORY``, or all there is."""
    # Each level is a pair of the one before.
    doubled = string("x") + b"".join(b"q%ch%c\x86" % (i, i) for i in range(27))
    return {
        "bytearray": b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x40\x85R.",
        "tuples called": b"\x80\x02" + doubled + b")R.",
        "tuples as a class": b"\x80\x02" + doubled + b")\x81.",
        "memo": b"\x80\x02}r\xff\xff\xff\x7f.",
        "text": b"\x80\x02X\xff\xff\xff\xffx.",
        "long": b"\x80\x02\x8b\xff\xff\xff\x7fx.",
        "counter": b"\x80\x02ccollections\nCounter\ncbuiltins\nbytearray\nJ\x00\x00\x00\x30\x85R\x85R.",
        "marks": b"\x80\x02" + b"(" * 1_000_000 + b".",
        "deep key": b"\x80\x02})" + b"\x85" * 900_000 + b"Ns.",
        "depth": b"\x80\x02" + b")" + b"\x85" * 900_000 + b".",
        "large storage": rebuilt(2**40, (2**40,), (1,)),
        "negative storage": rebuilt(-5, (2,), (1,)),
        "large tensor": rebuilt(2, (2**28,), (1,)),
        "expanded tensor": rebuilt(2, (2**28,), (0,)),
        "overflowing tensor": rebuilt(2, (2**62, 2**62), (1, 1)),
        "empty tensor": rebuilt(2, (0, 2**62), (1, 1)),
        "negative size": rebuilt(2, (-1,), (1,)),
        "negative stride": rebuilt(2, (2,), (-1,)),
        "no such storage": rebuilt(2, (2,), (1,), key="../../etc/passwd"),
        "long storage": rebuilt(1, (1,), (1,), kind="Long"),
        "complex storage": rebuilt(1, (1,), (1,), kind="ComplexFloat"),
        "layout": b"\x80\x02ctorch.serialization\n_get_layout\n" + string("torch.sparse_coo") + b"\x85R.",
        "tensor class": b"\x80\x02ctorch\nFloatTensor\n\x8a\x05\x00\x00\x00\x00\x01\x85R.",
        "parameter": b"\x80\x02ctorch.nn.parameter\nParameter\n)\x81.",
    }


@cache
def bombs() -> tuple[bytes, ...]:
    """Archives of under a megabyte whose pickle, or storage, inflates to 600 MB."""
    bombs = []
    for name in ("archive/data.pkl", "archive/data/0"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
            if name != "archive/data.pkl":
                file.writestr("archive/data.pkl", rebuilt(150 * 2**20, (150 * 2**20,), (1,)))
            with file.open(name, "w", force_zip64=True) as member:
                for _ in range(600):
                    member.write(bytes(2**20))
        bombs.append(buffer.getvalue())
    return tuple(bombs)


def hostile_pickle(draw: Draw, files: Files) -> Outcome:
    payloads = [*executing_pickles(MARKER).values(), *greedy_pickles().values()]
    payload = draw(st.sampled_from(payloads))
    if draw(st.booleans()):  # with some of it damaged, in case that opens a door
        part = {"pickle": payload}
        draw(st.sampled_from([flip, overwrite, truncate]))(draw, part)
        payload = part["pickle"]
    files["data_dict"] = draw(
        st.sampled_from(
            [
                *[with_pickle(files, payload)] * 4,
                with_pickle(files, payload, zipfile.ZIP_DEFLATED),
                payload,
                legacy(payload),
                payload + files["data_dict"],
                *bombs(),
            ]
        )
    )
    return Outcome.same


def other_tensors(draw: Draw, files: Files) -> Outcome:
    """What the reference could have saved, but did not: other values, shapes, types; the card may follow."""
    distilled = a_set()
    tensors: dict[Any, Any] = {name: tensor.detach() for name, tensor in distilled.raw.items()}
    name = draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[name]
    card = json.loads(files["config.json"])
    match draw(st.sampled_from(["value", "dtype", "kind", "shape", "share", "key", "card"])):
        case "value":
            value = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
            tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = value
        case "dtype":
            kinds = [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint8]
            tensors[name] = tensor.to(draw(st.sampled_from(kinds)))
            if draw(st.booleans()):
                tensors[name] = torch.full_like(tensor, 1e300, dtype=torch.float64)
        case "kind":
            others = [tensor.to("meta"), tensor.to_sparse(), torch.nn.Parameter(tensor), 1.0, [tensor], None, "x"]
            tensors[name] = draw(st.sampled_from(others))
        case "shape":
            others = [tensor[None], tensor[:1], tensor[:0], tensor.new_zeros(()).expand(2**40), tensor.new_zeros(5)]
            tensors[name] = draw(st.sampled_from(others))
        case "share":  # many large tensors of one storage
            tensors |= {str(i): tensor for i in range(draw(st.sampled_from([1, 50, 2000])))}
        case "key":
            tensors[draw(st.sampled_from([1, None, ("a",), "x" * 100_000, "\n"]))] = tensors.pop(name)
        case "card":
            n, big = 4, draw(st.sampled_from([2**20, 2**31, 2**40, 2**61, 2**63 - 1]))
            key = draw(st.sampled_from(["num_labels", "hidden_size", "num_layers", "num_heads"]))
            card[key] = big
            tensors["labels"] = torch.zeros(()).expand(n, big if key == "num_labels" and big < 2**60 else 2)
    buffer = io.BytesIO()
    torch.save(tensors if draw(st.integers(0, 9)) else list(tensors.values()), buffer)
    files["data_dict"] = buffer.getvalue()
    files["config.json"] = json.dumps(card).encode()
    return Outcome.same


# --- the fuzz

MARKER = Path(tempfile.gettempdir(), f"textdistill-executed-{os.getpid()}")
MUTATIONS = {name: globals()[name] for artefact in ARTEFACTS.values() for name in artefact.mutations}
CASES = [(kind, mutation) for kind, artefact in ARTEFACTS.items() for mutation in artefact.mutations]


class Hang(BaseException):
    """No ValueError, and nothing that catches Exception stops it."""


@contextmanager
def limits() -> Iterator[None]:
    """Time and memory of one example, the process's own high-water mark being set back first (Linux)."""

    def hang(*_: object) -> None:
        raise Hang(f"over {MAX_SECONDS} s")

    def memory(key: str) -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition(f"{key}:")[2].split()[0])

    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    previous = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    taken = memory("VmHWM") - before
    assert taken < MAX_MEMORY, f"took {taken / 2**20:.0f} MB"
    SEEN["memory"] = max(SEEN["memory"], taken)


SEEN = {"examples": 0, "refused": 0, "read": 0, "memory": 0}


def put(folder: Path, files: Files) -> None:
    for name, content in files.items():
        match content:
            case Link(target):
                (folder / name).symlink_to(target)
            case Special("fifo"):
                os.mkfifo(folder / name)
            case Special("folder"):
                (folder / name).mkdir()
            case _:
                (folder / name).write_bytes(content)


def assert_clear(error: Exception, folder: Path, names: set[str]) -> None:
    """One line that names a file of the folder; not one of the many subclasses of ValueError."""
    message = str(error)
    assert type(error) in (ValueError, FileNotFoundError)
    assert str(folder) in message
    assert any(name in message for name in names)
    assert len(message) < MAX_MESSAGE
    assert "\n" not in message


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, bytes], Any]]:
    """The files of a valid folder of every kind, and what is read from them."""
    found = {}
    for kind, artefact in ARTEFACTS.items():
        folder = tmp_path_factory.mktemp(kind)
        artefact.write(folder)
        found[kind] = ({path.name: path.read_bytes() for path in folder.iterdir()}, artefact.load(folder))
    bombs()
    return found


@pytest.fixture(scope="module", autouse=True)
def report() -> Iterator[None]:
    """The counts, shown by ``pytest -s``."""
    yield
    print(f"\n{SEEN['examples']} examples: {SEEN['refused']} refused, {SEEN['read']} read;", end=" ")
    print(f"at most {SEEN['memory'] / 2**20:.0f} MB an example")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "mutation"), CASES, ids=["-".join(case) for case in CASES])
def test_a_strangers_folder_is_refused_by_name_or_read_unchanged(
    originals: dict[str, tuple[dict[str, bytes], Any]], kind: str, mutation: str
) -> None:
    artefact, (original, expected) = ARTEFACTS[kind], originals[kind]

    @settings(
        max_examples=-(-EXAMPLES // len(CASES)),
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        files: Files = dict(original)
        outcome = MUTATIONS[mutation](data.draw, files)
        SEEN["examples"] += 1
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root, "set")
            folder.mkdir()
            put(Path(root), {"outside": next(iter(original.values())), "pipe": Special("fifo")})
            put(folder, files)
            try:
                with limits():
                    loaded = artefact.load(folder)
            except (ValueError, FileNotFoundError) as error:
                SEEN["refused"] += 1
                assert_clear(error, folder, {*original, "distilled.safetensors", "data_dict"})
            else:
                SEEN["read"] += 1
                changed = {name for name in original if files.get(name) != original[name]}
                if outcome is Outcome.damaged:
                    assert not changed & artefact.sealed
                if outcome is Outcome.same or not changed - {"README.md"}:
                    assert artefact.same(loaded, expected)
                else:
                    artefact.assert_valid(loaded, expected)
            finally:
                assert not MARKER.exists()

    fuzz()


@pytest.mark.parametrize("name", list(executing_pickles(MARKER)))
def test_the_hostile_pickles_do_run_where_they_are_let(name: str, tmp_path: Path) -> None:
    """Or their refusal would show nothing."""
    marker = tmp_path / "executed"
    with suppress(Exception):  # some fail once they have run
        pickle.loads(executing_pickles(marker)[name])
    assert marker.exists()
