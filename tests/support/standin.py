"""A loopback stand-in of the hub's HTTP interface: dataset repositories in memory, pushed to and loaded from."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants
from huggingface_hub.utils import close_session

OWNER, TOKEN, READ_TOKEN = "owner", "hf_write", "hf_read"
LICENSES = {"mit", "apache-2.0", "cc-by-4.0", "unknown", "other"}
TASK_CATEGORIES = {"text-classification", "feature-extraction", "other"}

Files = dict[str, bytes]


class Refused(Exception):
    """A status, the hub's code for it, and a reason."""


class HungUp(Exception):
    """The connection ends without an answer."""


@dataclass
class Repository:
    """Commits by id, and the branches that name one; like the hub's, it starts with a file of its own."""

    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})

    def commit(self, branch: str, files: Files) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str:
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    def files(self, revision: str = "main") -> Files:
        return self.commits[self.resolve(revision)]


@dataclass
class Hub:
    """What the stand-in holds, and how it behaves.

    Attributes:
        large: whether ``*.safetensors`` goes to the store of large files, as on the hub, or into the commit.
        before: called with method and path of every request; may raise ``Refused`` or ``HungUp``.

    """

    large: bool = False
    before: Callable[[str, str], None] = lambda method, path: None
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)


def point_to(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process one that was started with ``HF_ENDPOINT`` and ``HF_TOKEN``, of which one is read once."""
    close_session()
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    # Xet has a protocol of its own, which the stand-in does not speak.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub at ``url`` for the length of a block."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        close_session()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        try:
            body = self.body()
            self.hub.before(self.command, path)
            method = "GET" if self.command == "HEAD" else self.command
            for verb, pattern, work in ROUTES:
                if verb == method and (match := re.fullmatch(pattern, path)):
                    content, headers = work(self, body, *match.groups())
                    return self.send(200, content, headers)
            raise Refused(404, "NotFound", f"no such page: {path}")
        except Refused as refused:
            status, code, reason = refused.args
            content = reason if isinstance(reason, dict) else {"error": reason}
            self.send(status, content, {"X-Error-Code": code, "X-Error-Message": str(content.get("error", ""))})
        except HungUp:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            length = int(self.headers.get("Content-Length", 0))
            data = self.rfile.read(length)
            if len(data) < length:
                raise HungUp
            return data
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def send(self, status: int, content: bytes | dict[str, Any] | list[Any], headers: dict[str, str]) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def writer(self) -> None:
        if self.token == READ_TOKEN:
            raise Refused(403, "", "You need write access to this repository")
        if self.token != TOKEN:
            raise Refused(401, "", "Invalid credentials in Authorization header")

    def repository(self, name: str) -> Repository:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and self.token not in (TOKEN, READ_TOKEN)):
            raise Refused(401 if self.token is None else 404, "RepoNotFound", "Repository not found")
        return found


Answer = tuple[Any, dict[str, str]]


def _create(handler: _Handler, body: bytes) -> Answer:
    handler.writer()
    given = json.loads(body)
    assert given["type"] == "dataset"
    owner = given["organization"] or OWNER
    if owner != OWNER:
        raise Refused(403, "", f"You don't have the rights to create a dataset under the namespace {owner!r}")
    name = f"{owner}/{given['name']}"
    url = f"{handler.hub.url}/datasets/{name}"
    if name in handler.hub.repositories:
        raise Refused(409, "", {"error": "You already created this dataset repo", "url": url})
    handler.hub.repositories[name] = Repository(
        private=given.get("visibility") == "private" or bool(given.get("private"))
    )
    return {"url": url, "name": name}, {}


def _validate(handler: _Handler, body: bytes) -> Answer:
    given = json.loads(body)
    assert given["repoType"] == "dataset"
    head = given["content"].split("---\n")[1]
    metadata, errors = yaml.safe_load(head), []
    for key, value in metadata.items():
        known = {
            "license": lambda v: v in LICENSES,
            "task_categories": lambda v: set(v) <= TASK_CATEGORIES,
            "tags": lambda v: all(isinstance(tag, str) for tag in v),
            "viewer": lambda v: isinstance(v, bool),
        }
        if key not in known or not known[key](value):
            errors.append({"message": f'"{key}" cannot be {value!r}'})
    if errors:
        raise Refused(400, "", {"errors": errors, "warnings": []})
    return {"errors": [], "warnings": []}, {}


def _is_large(handler: _Handler, path: str) -> bool:
    return handler.hub.large and path.endswith(".safetensors")


def _oid(handler: _Handler, path: str, data: bytes) -> str:
    if _is_large(handler, path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _preupload(handler: _Handler, body: bytes, name: str, revision: str) -> Answer:
    repository = handler.repository(name)
    handler.writer()
    there, files = repository.files(revision), []
    for file in json.loads(body)["files"]:
        path = file["path"]
        mode = "lfs" if _is_large(handler, path) else "regular"
        oid = _oid(handler, path, there[path]) if path in there else None
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return {"files": files}, {}


def _batch(handler: _Handler, body: bytes, name: str) -> Answer:
    handler.repository(name)
    handler.writer()
    objects = json.loads(body)["objects"]
    for item in objects:
        if item["oid"] not in handler.hub.stored:
            item["actions"] = {"upload": {"href": f"{handler.hub.url}/large/{item['oid']}"}}
    return {"transfer": "basic", "objects": objects}, {}


def _store(handler: _Handler, body: bytes, oid: str) -> Answer:
    assert hashlib.sha256(body).hexdigest() == oid
    handler.hub.stored[oid] = body
    return {}, {}


def _commit(handler: _Handler, body: bytes, name: str, revision: str) -> Answer:
    repository = handler.repository(name)
    handler.writer()
    files = dict(repository.files(revision))
    for line in body.splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "lfsFile":
            files[value["path"]] = handler.hub.stored[value["oid"]]
        else:
            assert item["key"] == "header"
    oid = repository.commit(revision, files)
    return {"success": True, "commitOid": oid, "commitUrl": f"{handler.hub.url}/datasets/{name}/commit/{oid}"}, {}


def _branch(handler: _Handler, body: bytes, name: str, branch: str) -> Answer:
    repository = handler.repository(name)
    handler.writer()
    if branch in repository.branches:
        raise Refused(409, "", "Reference already exists")
    repository.branches[branch] = repository.branches["main"]
    return {}, {}


def _info(handler: _Handler, body: bytes, name: str, revision: str | None = None) -> Answer:
    repository = handler.repository(name)
    return {"id": name, "sha": repository.resolve(revision or "main"), "private": repository.private}, {}


def _tree(handler: _Handler, body: bytes, name: str, revision: str) -> Answer:
    entries = []
    for path, data in handler.repository(name).files(revision).items():
        entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if _is_large(handler, path):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        entries.append(entry)
    return entries, {}


def _resolve(handler: _Handler, body: bytes, name: str, revision: str, path: str) -> Answer:
    repository = handler.repository(name)
    commit = repository.resolve(revision)
    data = repository.commits[commit].get(path)
    if data is None:
        raise Refused(404, "EntryNotFound", f"no {path}")
    return data, {"X-Repo-Commit": commit, "ETag": f'"{_oid(handler, path, data)}"'}


_NAME = r"([^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("POST", "/api/repos/create", _create),
    ("POST", "/api/validate-yaml", _validate),
    ("POST", f"/api/datasets/{_NAME}/preupload/(.+)", _preupload),
    ("POST", f"/datasets/{_NAME}[.]git/info/lfs/objects/batch", _batch),
    ("PUT", "/large/(.+)", _store),
    ("POST", f"/api/datasets/{_NAME}/commit/(.+)", _commit),
    ("POST", f"/api/datasets/{_NAME}/branch/(.+)", _branch),
    ("GET", f"/api/datasets/{_NAME}", _info),
    ("GET", f"/api/datasets/{_NAME}/revision/(.+)", _info),
    ("GET", f"/api/datasets/{_NAME}/tree/(.+)", _tree),
    ("GET", f"/datasets/{_NAME}/resolve/([^/]+)/(.+)", _resolve),
]
