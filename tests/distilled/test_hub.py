"""Pushing to and loading from the hub, against a stand-in of it on the loopback."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from tests.support import toy
from tests.support.forkserver import FRESH
from tests.support.standin import OWNER, READ_TOKEN, TOKEN, Hub, HungUp, Refused, Repository, point_to, serve
from tests.support.words import CLASS_NAMES
from textdistill.cli import main as cli
from textdistill.commands import sets
from textdistill.commands.distill import distill
from textdistill.config import compose
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.initial import initial_set
from textdistill.distilled.spec import DistilledDataConfig, LearnerTrainConfig, SetMetadata, model_metadata
from textdistill.method.attention import AttentionLabelType
from textdistill.method.learner import Learner

REPO = f"{OWNER}/toy"
FILES = {"distilled.safetensors", "config.json", "README.md"}


@pytest.fixture
def distilled(tiny_learner32: Learner, toy_split: TokenizedSplit) -> DistilledDataset:
    config = DistilledDataConfig(attention_label_type=AttentionLabelType.cls, seq_length=5)
    metadata = SetMetadata("toy", CLASS_NAMES, model_metadata(tiny_learner32))
    return initial_set(config, LearnerTrainConfig(), metadata, tiny_learner32, toy_split, seed=0)


@pytest.fixture(scope="module")
def run(tiny_bert: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    root = tmp_path_factory.mktemp("made")
    distill(compose(*toy.overrides(tiny_bert, toy_data, root, f"base.save_dir={root}/run")))
    return root / "run"


# --- There and back


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_round_trip_is_bit_identical(
    hub: Hub, distilled: DistilledDataset, tmp_path: Path, large: bool, dtype: torch.dtype | None
) -> None:
    hub.large = large
    distilled.save_pretrained(tmp_path / "set", dtype)
    commit = sets.push(tmp_path / "set", REPO)
    remote = hub.repositories[REPO]
    assert remote.files()["distilled.safetensors"] == (tmp_path / "set" / "distilled.safetensors").read_bytes()
    assert set(hub.stored.values()) == ({remote.files()["distilled.safetensors"]} if large else set())

    local, loaded = DistilledDataset.from_pretrained(tmp_path / "set"), DistilledDataset.from_pretrained(REPO)
    assert loaded.raw.keys() == local.raw.keys()
    assert all(torch.equal(loaded.raw[name], tensor) for name, tensor in local.raw.items())
    assert (loaded.config, loaded.inner_config) == (local.config, local.inner_config)
    assert loaded.revision == commit.oid == remote.branches["main"]
    assert loaded.stored_dtype == (dtype or torch.float32)


def test_a_push_is_one_commit_that_leaves_other_files_alone(hub: Hub, distilled: DistilledDataset) -> None:
    distilled.push_to_hub(REPO)
    distilled.raw["labels"].data += 1
    distilled.push_to_hub(REPO)
    first, *others = hub.repositories[REPO].commits.values()
    assert [set(files) for files in others] == [{".gitattributes", *FILES}] * 2
    assert all(files[".gitattributes"] == first[".gitattributes"] for files in others)
    assert torch.equal(DistilledDataset.from_pretrained(REPO).raw["labels"], distilled.raw["labels"])


def test_what_is_there_already_makes_no_commit(hub: Hub, distilled: DistilledDataset) -> None:
    commit = distilled.push_to_hub(REPO)
    assert distilled.push_to_hub(REPO).oid == commit.oid
    assert len(hub.repositories[REPO].commits) == 2


def test_revisions(hub: Hub, distilled: DistilledDataset) -> None:
    first = distilled.push_to_hub(REPO)
    old = distilled.raw["lr"].clone()
    distilled.raw["lr"].data += 1
    second = distilled.push_to_hub(REPO, revision="v2", commit_message="Higher rates")
    assert hub.repositories[REPO].branches == {"main": first.oid, "v2": second.oid}
    assert second.commit_message == "Higher rates"
    for revision, lr in {None: old, "v2": old + 1, first.oid: old, second.oid: old + 1}.items():
        loaded = DistilledDataset.from_pretrained(REPO, revision=revision)
        assert torch.equal(loaded.raw["lr"], lr)
    with pytest.raises(FileNotFoundError, match="at revision 'v3', a dataset repository that can be fetched"):
        DistilledDataset.from_pretrained(REPO, revision="v3")


def test_the_owner_may_be_left_out(hub: Hub, distilled: DistilledDataset) -> None:
    assert distilled.push_to_hub("toy").repo_url.repo_id == REPO
    assert f'from_pretrained("{REPO}")' in hub.repositories[REPO].files()["README.md"].decode()


@pytest.mark.parametrize("private", [None, False, True])
def test_private(hub: Hub, distilled: DistilledDataset, monkeypatch: pytest.MonkeyPatch, private: bool | None) -> None:
    distilled.push_to_hub(REPO, private=private)
    assert hub.repositories[REPO].private is bool(private)
    distilled.push_to_hub(REPO, private=private)
    monkeypatch.delenv("HF_TOKEN")
    if private:
        with pytest.raises(FileNotFoundError, match="can be fetched from the hub"):
            DistilledDataset.from_pretrained(REPO)
    else:
        DistilledDataset.from_pretrained(REPO)


def test_private_is_never_published(hub: Hub, distilled: DistilledDataset) -> None:
    """The hub ignores the wish where the repository exists."""
    hub.repositories[REPO] = Repository(private=False)
    with pytest.raises(ValueError, match=f"'{REPO}' must be private, but it exists and is public; make it private"):
        distilled.push_to_hub(REPO, private=True)
    assert len(hub.repositories[REPO].commits) == 1


# --- What a shared card says


def test_nothing_of_this_machine_is_pushed(
    hub: Hub, run: Path, tiny_bert: Path, toy_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    local = (run / "distilled" / "config.json").read_text()
    assert str(run) in local
    assert str(toy_data) in local
    sets.push(run / "distilled", REPO, license="mit")
    for name, data in hub.repositories[REPO].files().items():
        for place in (run.parents[1], tiny_bert.parents[1], toy_data.parent):
            assert str(place).encode() not in data, name
    assert f"the metadata to share name the model tiny-bert: {tiny_bert} is a folder of this machine" in caplog.text

    card = json.loads(hub.repositories[REPO].files()["config.json"])
    assert card["model"]["name"] == "tiny-bert"
    assert card["model"]["revision"].startswith("sha256:")
    assert card["provenance"]["scores"] == json.loads(local)["provenance"]["scores"]
    given = card["provenance"]["config"]
    assert given["base"]["seed"] == 42
    assert not {"save_dir", "save_dir_root", "save_method_dir", "data_dir_root"} & given["base"].keys()
    assert not {"path", "datasets_path", "preprocessed_datasets_path"} & given["data"].keys()
    assert "save_ckpt_dir" not in given["train"]


def test_the_readme_on_the_hub_can_be_followed(
    hub: Hub, run: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines, word for word, where the model of its card can be found."""
    sets.push(run / "distilled", REPO)
    readme = hub.repositories[REPO].files()["README.md"].decode()
    scores = json.loads((run / "results.json").read_text())["metrics"]
    assert f"| accuracy | {scores['accuracy']['mean']:.4f} | {scores['accuracy']['std']:.4f} | 2 |" in readme
    assert "On 60 rows (test), protocol clean" in readme

    (tmp_path / "tiny-bert").symlink_to(tiny_bert)
    monkeypatch.chdir(tmp_path)
    (shell,) = re.findall("```sh\n(.*?)```", readme, flags=re.DOTALL)
    for line in shell.splitlines():
        command, *arguments = shlex.split(line)
        assert command == "textdistill"
        monkeypatch.setattr("textdistill.cli.app.quiet_logs", lambda: None)
        cli.main(arguments)
    assert (tmp_path / "model" / "model.safetensors").exists()
    (python,) = re.findall("```python\n(.*?)```", readme, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(python, names)
    assert names["model"].config.id2label == dict(enumerate(CLASS_NAMES))


# --- What cannot be done is said once


def refused(distilled: DistilledDataset, kind: type[Exception], message: str, **options: Any) -> None:
    with pytest.raises(kind, match=message):
        distilled.push_to_hub(options.pop("repo", REPO), **options)


def test_without_a_token(hub: Hub, distilled: DistilledDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    refused(distilled, ValueError, "pushing needs a token .* none was found; run hf auth login, or set HF_TOKEN")
    assert hub.requests == []
    distilled.push_to_hub(REPO, token=TOKEN)


@pytest.mark.parametrize(
    ("token", "repo", "reason"),
    [
        ("hf_wrong", REPO, r"answered 401 \(Invalid credentials"),
        (READ_TOKEN, REPO, r"answered 403 \(You need write access"),
        (TOKEN, "other/toy", r"answered 403 \(You don't have the rights"),
    ],
)
def test_a_token_that_may_not_write(hub: Hub, distilled: DistilledDataset, token: str, repo: str, reason: str) -> None:
    remedy = r"check the name, and that the token may write there"
    refused(distilled, OSError, f"pushing to '{repo}' failed: the hub {reason}.*; {remedy}", repo=repo, token=token)
    assert hub.repositories == {}


def test_without_a_network(distilled: DistilledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        point_to(url, tmp_path, monkeypatch)
        refused(distilled, OSError, rf"pushing to '{REPO}' failed \(.*\); check the connection to {url} and push again")
        with pytest.raises(FileNotFoundError, match=f"'{REPO}' is neither a folder here nor.*check path, .*connection"):
            DistilledDataset.from_pretrained(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(distilled, OSError, "failed .*HF_HUB_OFFLINE")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"license": "MIT License"}, "license must be an identifier of the hub, such as mit or cc-by-4.0, got 'MIT L"),
        ({"license": "mine"}, "Invalid metadata in README.md.\n.*license"),
        ({"repo": "a b"}, "'a b'"),
        ({"repo": "a/b/c"}, "'a/b/c'"),
    ],
)
def test_bad_arguments(hub: Hub, distilled: DistilledDataset, options: dict[str, Any], message: str) -> None:
    refused(distilled, ValueError, message, **options)
    assert all(len(repository.commits) == 1 for repository in hub.repositories.values())


@pytest.mark.parametrize("how", [HungUp(), Refused(500, "", "Internal error"), Refused(403, "", "Storage is full")])
@pytest.mark.parametrize(
    ("stage", "large"),
    [("/commit/", False), ("/commit/", True), ("/preupload/", False), ("/preupload/", True), ("/large/", True)],
)
def test_an_interrupted_push_leaves_the_repository_unchanged(
    hub: Hub,
    distilled: DistilledDataset,
    monkeypatch: pytest.MonkeyPatch,
    large: bool,
    how: Exception,
    stage: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between tries
    distilled.push_to_hub(REPO)
    hub.large = large
    before = {branch: dict(hub.repositories[REPO].files(branch)) for branch in hub.repositories[REPO].branches}

    def interrupt(method: str, path: str) -> None:
        if method in ("POST", "PUT") and stage in path:
            raise how

    distilled.raw["labels"].data += 1
    hub.before = interrupt
    refused(distilled, OSError, f"^pushing to '{REPO}' failed[^\n]*$")
    after = {branch: hub.repositories[REPO].files(branch) for branch in hub.repositories[REPO].branches}
    assert after == before
    hub.before = lambda method, path: None
    distilled.push_to_hub(REPO)
    assert torch.equal(DistilledDataset.from_pretrained(REPO).raw["labels"], distilled.raw["labels"])


# --- The command, in processes of its own


def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return kept | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}


def test_push_and_show_through_hf_endpoint(run: Path, tmp_path: Path) -> None:
    with serve() as hub:
        push = ["push", str(run / "distilled"), REPO, "--private", "--license", "cc-by-4.0", "--message", "Toy"]
        done = subprocess.run(
            [sys.executable, "-c", f"from textdistill.cli.main import main; main({push}); main(['show', {REPO!r}])"],
            env=environment(hub, tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        repository = hub.repositories[REPO]
        commit = repository.branches["main"]
        assert done.stdout.startswith(
            f"pushed: {hub.url}/datasets/{REPO}/commit/{commit}\n"
            f'load it: DistilledDataset.from_pretrained("{REPO}", revision="{commit}")\n'
            "toy, made for tiny-bert (sha256:"
        )
        assert repository.private
        assert repository.files()["README.md"].startswith(b"---\nlicense: cc-by-4.0\n")


def push(url: str, tmp_path: Path, distilled_dir: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        point_to(url, tmp_path, patch)
        cli.main(["push", str(distilled_dir), REPO])


def test_a_push_that_is_killed_leaves_the_repository_unchanged(run: Path, tmp_path: Path) -> None:
    with serve() as hub:
        hub.repositories[REPO] = Repository(private=False)
        process, ended = FRESH.Process(target=push, args=(hub.url, tmp_path, run / "distilled")), Event()

        def kill(method: str, path: str) -> None:
            if "/preupload/" in path:
                process.kill()
                ended.wait()

        hub.before = kill
        process.start()
        process.join()
        ended.set()
        assert process.exitcode == -signal.SIGKILL
        assert [set(files) for files in hub.repositories[REPO].commits.values()] == [{".gitattributes"}]


@pytest.mark.parametrize("token", [None, "hf_wrong", TOKEN])
def test_errors_of_the_command_are_one_line(
    hub: Hub,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str | None,
) -> None:
    monkeypatch.setattr("textdistill.cli.app.quiet_logs", lambda: None)
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    repo, message = REPO, "the hub answered 401"
    if token is None:
        message = "pushing needs a token of the hub"
    elif token == TOKEN:
        repo, message = "a b", "'a b'"
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["push", str(run / "distilled"), repo])
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("textdistill: error: ")
    assert message in line
