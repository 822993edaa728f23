"""Distilled sets on disk: what is written comes back, and whatever was tampered with is refused by name."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import pickle
import re
import shutil
import stat
import zipfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textdistill.core.files import replacing
from textdistill.distilled import hub, storage
from textdistill.distilled.reference_format import is_reference_folder, load_reference
from textdistill.distilled.storage import load_folder, save_folder
from textdistill.distilled.untrusted import parse

FILES = {"distilled.safetensors", "config.json", "README.md"}


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "inputs_embeds": torch.randn(4, 3, 5, generator=generator),
        "labels": torch.eye(2)[torch.arange(4) % 2],
        "lr": torch.tensor(-4.6),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "order": torch.arange(4),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "distilled"
    save_folder(path, some_tensors(), {"task": "sst2", "class_names": ["neg", "pos"]}, "# A set\n")
    return path


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """A card with the checksum that docs/format.md describes."""
    data = json.dumps({**card, "config_sha256": "0" * 64}).encode()
    sealed = data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode())
    (folder / "config.json").write_bytes(sealed)


def rewrite_config(folder: Path, **changes: Any) -> None:
    write_card(folder, json.loads((folder / "config.json").read_text()) | changes)


def assert_refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_folder(folder)
    assert str(folder) in str(error.value)


# --- saving and loading


def test_load_gives_back_what_was_saved(folder: Path) -> None:
    tensors, config = load_folder(folder)
    expected = some_tensors()
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])
    assert config["task"] == "sst2"
    assert config["class_names"] == ["neg", "pos"]
    assert config["format_version"] == 1
    assert config["revision"] is None
    assert config["tensors"]["half"] == {"shape": [2], "dtype": "BF16"}
    assert config["tensors"]["lr"] == {"shape": [], "dtype": "F32"}
    assert (folder / "README.md").read_text() == "# A set\n"


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(0, 3), max_size=4),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64]),
    value=st.integers(-100, 100),
    note=st.text(),
)
def test_save_and_load_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], dtype: torch.dtype, value: int, note: str
) -> None:
    path = tmp_path_factory.mktemp("identity") / "set"
    tensor = torch.full(shape, value, dtype=dtype)
    save_folder(path, {"x": tensor}, {"note": note}, note)
    tensors, config = load_folder(path)
    assert tensors["x"].dtype == dtype
    assert torch.equal(tensors["x"], tensor)
    assert config["note"] == note


def test_tensor_file_is_safetensors_byte_for_byte(tmp_path: Path) -> None:
    save_folder(tmp_path / "set", {"lr": torch.tensor([1.0, -2.0])}, {}, "")
    header = b'{"lr":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    padded = header.ljust(-8 * (-len(header) // 8))
    data = bytes.fromhex("0000803f 000000c0")
    assert (tmp_path / "set" / "distilled.safetensors").read_bytes() == (
        len(padded).to_bytes(8, "little") + padded + data
    )


def test_views_are_saved_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4).requires_grad_()
    save_folder(tmp_path / "set", {"t": base.T, "row": base[1].expand(2, 4)}, {}, "")
    tensors, _ = load_folder(tmp_path / "set")
    assert torch.equal(tensors["t"], base.detach().T)
    assert torch.equal(tensors["row"], base.detach()[1].expand(2, 4))


def test_loaded_tensors_do_not_follow_the_file(folder: Path) -> None:
    tensors, _ = load_folder(folder)
    with (folder / "distilled.safetensors").open("r+b") as file:
        file.write(b"\0" * (folder / "distilled.safetensors").stat().st_size)
    assert torch.equal(tensors["inputs_embeds"], some_tensors()["inputs_embeds"])


def test_files_have_ordinary_permissions(folder: Path) -> None:
    plain = folder.parent / "plain"
    plain.touch()
    for name in FILES:
        assert (folder / name).stat().st_mode == plain.stat().st_mode
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode)


def test_loaded_card_can_be_saved_again(folder: Path, tmp_path: Path) -> None:
    tensors, config = load_folder(folder)
    save_folder(tmp_path / "again", tensors | {"lr": torch.zeros(())}, config, "")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "revision" not in written
    assert written["sha256"] != config["sha256"]
    assert load_folder(tmp_path / "again")[1]["task"] == "sst2"


# --- replacing


def test_save_replaces_a_set_and_leaves_nothing_else(folder: Path) -> None:
    save_folder(folder, {"lr": torch.zeros(2)}, {}, "second")
    assert load_folder(folder)[0].keys() == {"lr"}
    assert {entry.name for entry in folder.iterdir()} == FILES
    assert list(folder.parent.iterdir()) == [folder]


def test_save_into_an_empty_folder(tmp_path: Path) -> None:
    save_folder(tmp_path, {"lr": torch.zeros(2)}, {}, "")
    assert {entry.name for entry in tmp_path.iterdir()} == FILES


@pytest.mark.parametrize("names", [["notes.txt"], ["config.json"], [*FILES, ".git"], ["README.md"]])
def test_save_refuses_to_replace_anything_but_a_set(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match="hold a distilled set and nothing else"):
        save_folder(tmp_path, {"lr": torch.zeros(2)}, {}, "")
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == dict.fromkeys(names, "mine")


def test_save_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("mine")
    with pytest.raises(ValueError, match="must be a folder, got a file"):
        save_folder(tmp_path / "set", {"lr": torch.zeros(2)}, {}, "")


@pytest.mark.parametrize(
    ("tensor", "config", "message"),
    [
        (torch.tensor([0.0, float("nan")]), {}, "'lr' must hold finite values, but 1 of 2"),
        (torch.tensor([float("inf")]), {}, "'lr' must hold finite values"),
        (torch.zeros(2, dtype=torch.int32), {}, "'lr' must have one of the dtypes .* got I32"),
        (torch.zeros(2), {"accuracy": float("nan")}, "not JSON compliant"),
    ],
)
def test_save_refuses_what_load_would_refuse(
    folder: Path, tensor: torch.Tensor, config: dict[str, Any], message: str
) -> None:
    before = (folder / "config.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        save_folder(folder, {"lr": tensor}, config, "")
    assert (folder / "config.json").read_bytes() == before
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("function", "call", "kept"),
    [
        # Three files, the new folder, and last, when the new set has its name, the parent.
        *[("fsync", call, "old") for call in range(4)],
        ("fsync", 4, "new"),
        # The old set aside, the new one to its place.
        ("rename", 0, "old"),
        ("rename", 1, "old"),
    ],
)
def test_failed_save_leaves_a_whole_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch, function: str, call: int, kept: str
) -> None:
    """A full disk at any sync or rename: afterwards one of the two sets is there, whole."""
    original, calls = getattr(os, function), itertools.count()

    def fail_once(*args: Any) -> Any:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args)

    monkeypatch.setattr(os, function, fail_once)
    with pytest.raises(OSError, match="No space left"):
        save_folder(folder, {"lr": torch.zeros(2)}, {}, "second")
    assert set(load_folder(folder)[0]) == (set(some_tensors()) if kept == "old" else {"lr"})


def test_process_that_dies_between_the_renames_leaves_both_sets_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a SIGKILL leaves there, played by copying the parent folder at that moment."""
    original = os.rename
    snapshot = folder.parent.parent / "snapshot"

    def rename(source: Any, target: Any) -> None:
        if Path(target) == folder:
            shutil.copytree(folder.parent, snapshot)
        original(source, target)

    monkeypatch.setattr(os, "rename", rename)
    save_folder(folder, {"lr": torch.zeros(2)}, {}, "second")
    assert not (snapshot / "distilled").exists()
    (old,) = snapshot.glob(".distilled.*.old")
    (new,) = snapshot.glob(".distilled.*/new")
    assert set(load_folder(old)[0]) == set(some_tensors())
    assert set(load_folder(new)[0]) == {"lr"}


# --- local folders that are refused


@pytest.mark.parametrize("name", ["distilled.safetensors", "config.json"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no file {re.escape(name)}"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json must be JSON"),
        ("", "config.json must be JSON"),
        ("[" * 100_000, "config.json must be JSON"),
        ("[1]", "config.json must be a JSON object, got list"),
        ("{}", "no format_version"),
        ('{"format_version": 2}', "format_version must be 1, got 2; .* upgrade"),
        ('{"format_version": [1]}', "format_version must be 1"),
        ('{"format_version": true}', "format_version must be 1, got True"),
        ('{"format_version": 1}', "config_sha256 must be that of the file itself .*, got None"),
        ('{"format_version": 1, "config_sha256": []}', "config_sha256 must be that of the file itself"),
        ('{"accuracy": NaN}', "config.json must be JSON: Out of range"),
        ('{"accuracy": 1e999}', "config.json must be JSON: Out of range"),
        (r'{"task": "\ud800"}', "config.json must be JSON: .*surrogates not allowed"),
        ("1" * 5000, "config.json must be JSON: Exceeds the limit"),
        ('{"a":' * 21 + "1" + "}" * 21, "config.json must nest at most 20"),
        ('{"format_version": "' + "x" * 100_000 + '"}', "format_version must be 1, got 'xxx"),
    ],
)
def test_bad_config(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    assert_refused(folder, message)


@pytest.mark.parametrize("tensors", [None, []])
def test_card_without_tensors(folder: Path, tensors: Any) -> None:
    rewrite_config(folder, tensors=tensors)
    assert_refused(folder, "must declare its tensors")


def test_any_flipped_bit_of_the_card(folder: Path) -> None:
    """Also those that leave its values as they are: 1e-05 and 1E-05, the digits beyond a double's precision."""
    save_folder(folder, {"lr": torch.zeros(1)}, {"lr": 1e-05, "score": 0.1 + 0.2, "note": "\x1f"}, "")
    path = folder / "config.json"
    data = path.read_bytes()
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        assert_refused(folder, "config.json")
    path.write_bytes(data)
    load_folder(folder)


@pytest.mark.parametrize(
    "lr", [{"shape": [1], "dtype": "F32"}, {"shape": [], "dtype": "F16"}, {"shape": []}, [], None, 3, "x" * 100_000]
)
def test_declared_shape_or_dtype_differs_from_the_header(folder: Path, lr: Any) -> None:
    declared = load_folder(folder)[1]["tensors"]
    rewrite_config(folder, tensors=declared | {"lr": lr})
    assert_refused(folder, "'lr' must be what config.json declares")


def test_declared_tensor_missing_or_undeclared(folder: Path) -> None:
    declared = load_folder(folder)[1]["tensors"]
    rewrite_config(folder, tensors=declared | {"extra": declared["lr"]})
    assert_refused(folder, "'extra' must be what config.json declares, .* got None")
    del declared["half"]
    rewrite_config(folder, tensors=declared)
    assert_refused(folder, "'half' must be what config.json declares, None")


def test_declared_shape_is_numbers(folder: Path) -> None:
    save_folder(folder, {"one": torch.ones(1)}, {}, "")
    rewrite_config(folder, tensors={"one": {"shape": [True], "dtype": "F32"}})
    assert_refused(folder, r"'one' must be what config.json declares, \{'shape': \[True\]")


def test_header_is_checked_before_any_tensor_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reader:
        """A file whose header is fine and whose tensors must not be touched."""

        def __init__(self, path: Path, framework: str) -> None:
            self.file = storage_safe_open(path, framework=framework)

        def __enter__(self) -> Reader:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def keys(self) -> list[str]:
            return list(self.file.keys())

        def get_slice(self, name: str) -> Any:
            return self.file.get_slice(name)

        def get_tensor(self, name: str) -> torch.Tensor:
            pytest.fail(f"{name} was read")

    storage_safe_open = storage.safe_open
    monkeypatch.setattr(storage, "safe_open", Reader)
    rewrite_config(folder, tensors={})
    assert_refused(folder, "config.json declares")


@pytest.mark.parametrize("position", [0, 9, 40, -1, -100])
def test_one_flipped_bit(folder: Path, position: int) -> None:
    path = folder / "distilled.safetensors"
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    assert_refused(folder, "distilled.safetensors")


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_truncated(folder: Path, size: int) -> None:
    path = folder / "distilled.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert_refused(folder, "distilled.safetensors is not a whole safetensors file")


def test_not_finite(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "check_finite", lambda path, tensors: None)
        save_folder(folder, {"lr": torch.tensor([float("nan")])}, {}, "")
    assert_refused(folder, "'lr' must hold finite values")


@pytest.mark.parametrize("name", sorted(FILES))
def test_too_large(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(storage.LIMITS, name, 5)
    assert_refused(folder, f"{name} must have at most 5 bytes, got")
    with pytest.raises(ValueError, match=f"set/{name} must have at most 5 bytes, got"):
        save_folder(tmp_path / "set", some_tensors(), {}, "# A set\n")
    assert not (tmp_path / "set").exists()


def test_header_too_large(folder: Path) -> None:
    path = folder / "distilled.safetensors"
    path.write_bytes((2**20 + 1).to_bytes(8, "little") + b"{" + b" " * 2**21)
    assert_refused(folder, "not a whole safetensors file: its header claims 1048577 bytes")


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("target", ["../elsewhere", "/dev/zero", "/proc/self/environ"])
def test_link_out_of_the_folder(folder: Path, name: str, target: str) -> None:
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(target)
    assert_refused(folder, f"{re.escape(name)} is a link to a file outside its folder")


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_ordinary_file(folder: Path, name: str) -> None:
    path = folder / name
    path.unlink()
    os.mkfifo(path)
    assert_refused(folder, f"{re.escape(name)} must be an ordinary file, got a folder, pipe or device")
    path.unlink()
    path.mkdir()
    assert_refused(folder, f"{re.escape(name)} must be an ordinary file, got a folder, pipe or device")
    path.rmdir()
    path.symlink_to(name)
    assert_refused(folder, f"{re.escape(name)} must be an ordinary file, got .*symbolic links")
    path.unlink()
    path.symlink_to("absent")
    with pytest.raises(FileNotFoundError, match=f"has no file {re.escape(name)}"):
        load_folder(folder)


def test_link_within_the_folder(folder: Path) -> None:
    (folder / "config.json").rename(folder / "card.json")
    (folder / "config.json").symlink_to("card.json")
    assert load_folder(folder)[1]["task"] == "sst2"


def test_revision_of_a_local_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match="is a local folder and revision is 'main'; leave it out"):
        load_folder(folder, revision="main")


# --- the hub


def as_hub_cache(folder: Path, cache: Path) -> Path:
    """The layout that ``snapshot_download`` makes: links from the snapshot of a commit to blobs.

    From huggingface_hub 2 on a large file's blob is itself a link, to what all repositories share.
    """
    snapshot = cache / "datasets--owner--name" / "snapshots" / ("c0ffee" * 7)[:40]
    blobs, common = cache / "datasets--owner--name" / "blobs", cache / "blobs"
    for path in (snapshot, blobs, common):
        path.mkdir(parents=True)
    for index, name in enumerate(sorted(FILES)):
        if name == "distilled.safetensors":
            shutil.copy(folder / name, common / str(index))
            (blobs / str(index)).symlink_to(f"../../blobs/{index}")
        else:
            shutil.copy(folder / name, blobs / str(index))
        (snapshot / name).symlink_to(f"../../blobs/{index}")
    return snapshot


def test_load_from_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = as_hub_cache(folder, tmp_path / "cache")
    calls = []

    def download(repo: str, **options: Any) -> str:
        calls.append((repo, options))
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", download)
    tensors, config = load_folder("owner/name", revision="v1")
    assert tensors.keys() == some_tensors().keys()
    assert config["revision"] == snapshot.name
    ((repo, options),) = calls
    assert repo == "owner/name"
    assert options["repo_type"] == "dataset"
    assert options["revision"] == "v1"
    assert set(options["allow_patterns"]) == FILES


def test_hub_snapshot_with_a_link_out_of_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = as_hub_cache(folder, tmp_path / "cache")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(folder / "config.json")
    monkeypatch.setattr(hub, "snapshot_download", lambda repo, **options: str(snapshot))
    with pytest.raises(ValueError, match="outside its folder"):
        load_folder("owner/name")


def test_neither_folder_nor_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # huggingface_hub itself refuses a path as a repository id, without asking the network.
    with pytest.raises(FileNotFoundError, match=r"neither a folder here nor.*check path"):
        load_folder(tmp_path / "absent")

    def offline(repo: str, **options: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"at revision 'v1'.*no route"):
        load_folder("owner/name", revision="v1")


# --- the reference implementation's format

N, L, D, C, Y, H, T = 4, 6, 5, 2, 3, 2, 2


def reference_set(
    folder: Path, attention: str = "cls", lr_for_step: bool = True
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Write what the reference's ``save_pretrained`` writes."""
    config = {
        "config": {
            "pretrained_data_path": None,
            "data_per_label": N // C,
            "attention_label_type": attention,
            "seq_length": L,
            "label_type": "unrestricted",
            "lr_for_step": lr_for_step,
            "lr_init": 0.01,
            "lr_linear_decay": False,
            "fix_order": True,
            "attention_loss_lambda": 1.0,
        },
        "train_config": {"train_step": T, "batch_size_per_label": 1},
        "num_labels": C,
        "hidden_size": D,
        "num_layers": Y,
        "num_heads": H,
    }
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "inputs_embeds": torch.randn(N, L, D, generator=generator),
        "labels": torch.randn(N, C, generator=generator),
        "lr": torch.randn(T, generator=generator) if lr_for_step else torch.tensor(-4.6),
    }
    if attention != "none":
        rows = 1 if attention == "cls" else L
        tensors["attention_labels"] = torch.randn(N, Y, H, rows, L, generator=generator)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    torch.save(tensors, folder / "data_dict")
    return tensors, config


@pytest.mark.parametrize("attention", ["none", "cls", "all"])
@pytest.mark.parametrize("lr_for_step", [True, False])
def test_load_reference(tmp_path: Path, attention: str, lr_for_step: bool) -> None:
    expected, expected_config = reference_set(tmp_path / "ref", attention, lr_for_step)
    assert is_reference_folder(tmp_path / "ref")
    tensors, config = load_reference(tmp_path / "ref")
    assert config == expected_config
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name])


def test_loaded_reference_does_not_follow_the_file(tmp_path: Path) -> None:
    expected, _ = reference_set(tmp_path / "ref")
    tensors, _ = load_reference(tmp_path / "ref")
    path = tmp_path / "ref" / "data_dict"
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert torch.equal(tensors["inputs_embeds"], expected["inputs_embeds"])


def test_our_folder_is_not_the_references(folder: Path, tmp_path: Path) -> None:
    assert not is_reference_folder(folder)
    assert not is_reference_folder(tmp_path / "absent")
    (folder / "data_dict").touch()
    assert not is_reference_folder(folder)


class Payload:
    """Unpickled the ordinary way, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("container", ["plain pickle", "torch.save", "old torch.save"])
def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path, container: str) -> None:
    tensors, _ = reference_set(tmp_path / "ref")
    target = tmp_path / "executed"
    data = tensors | {"labels": Payload(target)}
    path = tmp_path / "ref" / "data_dict"
    if container == "plain pickle":
        path.write_bytes(pickle.dumps(data))
    else:
        torch.save(data, path, _use_new_zipfile_serialization=container == "torch.save")
    with pytest.raises(ValueError, match=r"data_dict must be a dict of plain floating-point tensors.*never run"):
        load_reference(tmp_path / "ref")
    assert not target.exists()
    if container == "torch.save":  # the payload does work where it is let
        torch.load(path, weights_only=False)
        assert target.exists()


def rewrite_pickle(path: Path, old: bytes, new: bytes) -> None:
    """Change the pickle inside an archive of ``torch.save``."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            if name.endswith("data.pkl"):
                assert data.count(old) == 1
                data = data.replace(old, new)
            archive.writestr(name, data)


def test_reference_shape_larger_than_its_storage(tmp_path: Path) -> None:
    """Both files claim 2**28 samples, of which the archive stores four: refused before allocating them."""
    _, config = reference_set(tmp_path / "ref", "none")
    config["config"]["data_per_label"] = 2**27
    (tmp_path / "ref" / "config.json").write_text(json.dumps(config))
    many = b"J" + (2**28).to_bytes(4, "little")
    rewrite_pickle(tmp_path / "ref" / "data_dict", b"K\x04K\x06K\x05\x87", many + b"K\x06K\x05\x87")
    with pytest.raises(ValueError, match="data_dict must be a dict of plain floating-point tensors"):
        load_reference(tmp_path / "ref")


@pytest.mark.parametrize(
    "tensors",
    [
        [torch.zeros(2)],
        {"labels": [1.0]},
        {"labels": torch.zeros(2, dtype=torch.int64)},
        {"labels": torch.zeros(2, 2).to_sparse()},
        {"labels": torch.zeros(2, device="meta")},
        {"labels": torch.zeros(1).expand(2**40)},
    ],
    ids=["list", "number", "integers", "sparse", "meta", "expanded"],
)
def test_reference_of_anything_but_plain_tensors(tmp_path: Path, tensors: Any) -> None:
    reference_set(tmp_path / "ref")
    torch.save(tensors, tmp_path / "ref" / "data_dict")
    with pytest.raises(ValueError, match="data_dict must be a dict of plain floating-point tensors"):
        load_reference(tmp_path / "ref")


@pytest.mark.parametrize("size", [0, 10, -1, -100])
def test_reference_truncated(tmp_path: Path, size: int) -> None:
    reference_set(tmp_path / "ref")
    path = tmp_path / "ref" / "data_dict"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="data_dict must be a dict of plain floating-point tensors"):
        load_reference(tmp_path / "ref")


def test_reference_tensors_of_one_storage(tmp_path: Path) -> None:
    """A small file of a hundred names for one tensor would become a hundred tensors."""
    reference_set(tmp_path / "ref")
    tensor = torch.zeros(10_000)
    torch.save({f"{i}": tensor[:] for i in range(100)}, tmp_path / "ref" / "data_dict")
    with pytest.raises(ValueError, match="claim more elements than it stores"):
        load_reference(tmp_path / "ref")


def test_reference_of_compressed_members(tmp_path: Path) -> None:
    reference_set(tmp_path / "ref")
    path = tmp_path / "ref" / "data_dict"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match="its members are compressed"):
        load_reference(tmp_path / "ref")


def test_reference_with_a_flipped_bit_in_a_tensor(tmp_path: Path) -> None:
    tensors, _ = reference_set(tmp_path / "ref")
    path = tmp_path / "ref" / "data_dict"
    stored = tensors["inputs_embeds"].numpy().tobytes()
    data = path.read_bytes()
    assert data.count(stored) == 1
    path.write_bytes(data.replace(stored, bytes([stored[0] ^ 1]) + stored[1:]))
    with pytest.raises(ValueError, match="does not have the checksum of the archive"):
        load_reference(tmp_path / "ref")


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x40\x85R.",
        b"\x80\x02}q\x00h\x00\x86.",
        b"\x80\x02}." + b" " * 2**20,
    ],
    ids=["memory", "container twice", "size"],
)
def test_reference_of_another_pickle_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickled: bytes
) -> None:
    reference_set(tmp_path / "ref")
    path = tmp_path / "ref" / "data_dict"
    with zipfile.ZipFile(path) as archive:
        (old,) = (archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    rewrite_pickle(path, old, pickled)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("it was followed"))
    with pytest.raises(ValueError, match=r"data_dict must be a dict of plain floating-point tensors.*: its pickle"):
        load_reference(tmp_path / "ref")


@pytest.mark.parametrize("text", ["", "[]", '{"num_labels": NaN}', "[" * 100_000])
def test_reference_card_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    reference_set(tmp_path / "ref")
    (tmp_path / "ref" / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json must be (JSON|a JSON object)"):
        load_reference(tmp_path / "ref")


def test_reference_not_finite(tmp_path: Path) -> None:
    tensors, _ = reference_set(tmp_path / "ref")
    tensors["lr"][0] = float("inf")
    torch.save(tensors, tmp_path / "ref" / "data_dict")
    with pytest.raises(ValueError, match="'lr' must hold finite values"):
        load_reference(tmp_path / "ref")


def test_reference_link_out_of_the_folder(tmp_path: Path) -> None:
    reference_set(tmp_path / "ref")
    (tmp_path / "ref" / "data_dict").rename(tmp_path / "elsewhere")
    (tmp_path / "ref" / "data_dict").symlink_to("../elsewhere")
    with pytest.raises(ValueError, match="link to a file outside"):
        load_reference(tmp_path / "ref")


def test_reference_missing_file(tmp_path: Path) -> None:
    reference_set(tmp_path / "ref")
    (tmp_path / "ref" / "data_dict").unlink()
    with pytest.raises(FileNotFoundError, match="has no file data_dict"):
        load_reference(tmp_path / "ref")


# --- JSON as dataclasses


class Colour(StrEnum):
    red = "red"
    blue = "blue"


@dataclass
class Inner:
    count: int
    names: tuple[str, ...]


@dataclass
class Outer:
    inner: Inner
    colour: Colour
    rate: float
    flag: bool
    title: str | None
    free: dict[str, Any]


OUTER: dict[str, Any] = {
    "inner": {"count": 3, "names": ["a", "b"]},
    "colour": "blue",
    "rate": 1,
    "flag": False,
    "title": None,
    "free": {"x": [1]},
}


def test_parse() -> None:
    parsed = parse(Outer, OUTER)
    assert parsed == Outer(Inner(3, ("a", "b")), Colour.blue, 1.0, False, None, {"x": [1]})
    assert type(parsed.rate) is float
    assert type(parsed.colour) is Colour


COUNT = "inner.count must be a whole number from 1 to 2^63 - 1, got"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inner": []}, "inner must be an object, got []"),
        ({"inner": {"count": 3}}, "inner must have the keys ['count', 'names']: missing ['names'], unknown []"),
        ({"inner": {"count": 3, "names": [], "x": 1}}, "missing [], unknown ['x']"),
        *(({"inner": {"count": count, "names": []}}, COUNT) for count in (True, 0, -1, 2**63, 1.0, "1", None)),
        ({"inner": {"count": 1, "names": "ab"}}, "inner.names must be a list, got 'ab'"),
        ({"inner": {"count": 1, "names": ["a", 1]}}, "inner.names[1] must be a string, got 1"),
        ({"colour": "green"}, "colour must be one of red, blue, got 'green'"),
        ({"colour": ["red"]}, "colour must be one of red, blue, got ['red']"),
        ({"rate": "1"}, "rate must be a number, got '1'"),
        ({"rate": True}, "rate must be a number, got True"),
        ({"rate": 10**400}, "rate must be a number, got 1000"),
        ({"flag": 1}, "flag must be true or false, got 1"),
        ({"title": 5}, "title must be a string, got 5"),
        ({"free": None}, "free must be an object, got None"),
        ({"title": ["x" * 10**6]}, "title must be a string, got ['xxx"),
        ({"y" * 10**6: 1}, "missing [], unknown ['yyy"),
    ],
)
def test_parse_names_key_rule_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        parse(Outer, OUTER | changes)
    assert len(str(error.value)) < 500


# --- one file


def test_replacing(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("old")
    # Left by a process that died, or laid out to have another file written.
    (tmp_path / ".state.part").symlink_to(tmp_path / "other")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("when", ["writing", "fsync", "replace"])
def test_replacing_that_fails_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = tmp_path / "state"
    path.write_text("old")

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write() -> None:
        with replacing(path) as part:
            part.write_text("new")
            if when == "writing":
                full()
            monkeypatch.setattr(os, when, full)

    with pytest.raises(OSError, match="No space left"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
