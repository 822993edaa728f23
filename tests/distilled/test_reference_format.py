"""Folders of the reference implementation: what it saved is read, and its pickle is never run."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from textdistill.distilled.reference_format import is_reference_folder, load_reference
from textdistill.distilled.storage import save_folder

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


def test_our_folder_is_not_the_references(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    save_folder(folder, {"lr": torch.zeros(2)}, {}, "")
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
