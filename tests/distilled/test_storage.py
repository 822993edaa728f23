"""Folders of distilled sets: loading gives back what was saved, and refuses by name what was tampered with."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textdistill.distilled import hub, storage
from textdistill.distilled.storage import load_folder, save_folder

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
