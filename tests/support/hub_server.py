"""A server on this machine that answers as the Hugging Face Hub does, as far as huggingface_hub asks.

Accounts and tokens, repositories with branches, commits and pull requests, large files in one piece or in
parts, downloads with ranges; and failures on request: a status, or a connection that breaks.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest

TOKEN = "hf_" + "s" * 34
READ_TOKEN = "hf_" + "r" * 34
STUB = b"# gitattributes\n"


@dataclass
class Repository:
    """One model repository: the files of each commit, and the commit of each branch."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, ref: str, files: dict[str, bytes], message: str) -> str:
        self.messages.append(message)
        oid = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[oid] = files
        self.refs[ref] = oid
        return oid

    def files(self, revision: str) -> dict[str, bytes] | None:
        return self.commits.get(self.refs.get(revision, revision))


@dataclass
class Fault:
    """A fault at requests whose method and path match, and its number of repetitions."""

    where: str
    status: int | None = None  # None breaks the connection, after the event if there is one
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    after_bytes: int = 0
    until: threading.Event | None = None


@dataclass
class HubState:
    """The state of the server.

    Attributes:
        part_bytes: Size of the parts that large files come in; None for one piece.
        received: Bytes of each large file that arrived, by SHA-256.
        sent: Bytes of each file that were downloaded.
        stored: Large files, by SHA-256.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    part_bytes: int | None = None
    received: dict[str, int] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    refuse_metadata: str | None = None
    address: str = ""
    large: str = r".*\.(safetensors|bin)"
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, folder: Path | None = None, **facts: Any) -> Repository:
        """Make a repository that holds a folder's files; a data set's name begins with ``datasets/``."""
        repository = self.repositories[name] = Repository(**facts)
        files = {}
        for path in sorted(folder.rglob("*")) if folder is not None else ():
            if path.is_file():
                files[path.relative_to(folder).as_posix()] = path.read_bytes()
        repository.commit("main", files or {".gitattributes": STUB}, "initial commit")
        return repository

    def fail(self, where: str, status: int | None = None, times: int = 1, **more: Any) -> Fault:
        """Make the next requests that match fail."""
        self.faults.append(Fault(where, status, times, **more))
        return self.faults[-1]

    def is_large(self, name: str) -> bool:
        return re.fullmatch(self.large, name) is not None

    def download(self, name: str, folder: Path, revision: str = "main") -> Path:
        """Write a repository's files to a folder."""
        for path, content in (self.repositories[name].files(revision) or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return folder


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def __init__(self, state: HubState, *arguments: Any) -> None:
        self.state = state
        super().__init__(*arguments)

    def log_message(self, *arguments: Any) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self.handle_request()

    def do_GET(self) -> None:
        self.handle_request()

    def do_POST(self) -> None:
        self.handle_request()

    def do_PUT(self) -> None:
        self.handle_request()

    def handle_request(self) -> None:
        parts = urlsplit(self.path)
        self.route, self.query = parts.path, parse_qs(parts.query)
        name = f"{self.command} {self.route}"
        with self.state.lock:
            self.state.requests.append(name)
            fault = next((f for f in self.state.faults if f.times > 0 and re.search(f.where, name)), None)
            if fault is not None:
                fault.times -= 1
        if fault is not None and fault.status is None:
            self.read_body(fault.after_bytes)
            if fault.until is not None:
                fault.until.wait(60)
            self.connection.close()
            return
        body = self.read_body()
        if fault is not None and fault.status is not None:
            self.reply(fault.status, fault.body, fault.headers)
            return
        self.answer(body)

    def read_body(self, most: int | None = None) -> bytes:
        """Return the body, or its beginning; the bytes of large files are counted as they arrive."""
        pieces, total = [], 0
        key = self.route.split("/")[2] if self.route.startswith("/lfs/") else None
        is_chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        left = int(self.headers.get("Content-Length", 0))
        while most is None or total < most:
            if is_chunked:
                size = int(self.rfile.readline() or b"0", 16)
                data = self.rfile.read(size)
                self.rfile.readline()
            else:
                data = self.rfile.read(min(left - total, 1 << 14))
            if not data:
                break
            pieces.append(data)
            total += len(data)
            if key is not None and self.command == "PUT":
                with self.state.lock:
                    self.state.received[key] = self.state.received.get(key, 0) + len(data)
        return b"".join(pieces)

    def reply(self, status: int, data: Any = None, headers: dict[str, str] | None = None) -> None:
        content = data if isinstance(data, bytes) else json.dumps(data if data is not None else {}).encode()
        self.send_response(status)
        given = {"Content-Length": str(len(content)), **(headers or {})}
        if not isinstance(data, bytes):
            given = {"Content-Type": "application/json", **given}
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer(self, body: bytes) -> None:
        route, token = self.route, self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in (TOKEN, READ_TOKEN) and route.startswith("/api/"):
            words = "Invalid credentials in Authorization header"
            self.reply(401, {"error": words}, {"X-Error-Message": words})
        elif route == "/api/whoami-v2":
            role = "read" if token == READ_TOKEN else "write"
            account = {"name": "owner", "type": "user", "auth": {"accessToken": {"role": role}}}
            self.reply(200 if token else 401, account)
        elif route == "/api/validate-yaml":
            wrong = self.state.refuse_metadata
            errors = [{"message": wrong}] if wrong else []
            self.reply(400 if wrong else 200, {"errors": errors, "warnings": []})
        elif route == "/api/repos/create":
            self.create(json.loads(body))
        elif route.startswith("/lfs/"):
            self.large_file(body)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", route):
            self.batch(json.loads(body)["objects"], found[1])
        elif found := re.fullmatch(r"/api/(?:models/|(?=datasets/))((?:datasets/)?[^/]+/[^/]+)(/.*)?", route):
            self.with_repository(found[1], lambda repository: self.api(repository, found, body))
        elif found := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", route):
            self.with_repository(
                found[1], lambda repository: self.resolve(repository, unquote(found[2]), unquote(found[3]))
            )
        else:
            self.reply(404, {"error": "no such page"}, {"X-Error-Code": "RepoNotFound"})

    def with_repository(self, name: str, act: Any) -> None:
        repository = self.state.repositories.get(name)
        if repository is None:
            words = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            self.reply(404, {"error": "Repository not found"}, words)
        elif repository.gated:
            self.reply(403, {}, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        else:
            act(repository)

    def create(self, wanted: dict[str, Any]) -> None:
        owner = wanted.get("organization") or "owner"
        name = f"{owner}/{wanted['name']}"
        url = {"url": f"{self.state.address}/{name}", "name": name}
        if owner != "owner":
            words = "You don't have the rights to create a model under this namespace"
            self.reply(403, {"error": words}, {"X-Error-Message": words})
        elif name in self.state.repositories:
            self.reply(409, {**url, "error": "You already created this model repo"})
        else:
            is_private = wanted.get("private") or wanted.get("visibility") == "private"
            self.state.add(name, private=bool(is_private))
            self.reply(200, url)

    def api(self, repository: Repository, found: re.Match[str], body: bytes) -> None:
        kind, _, rest = (found[2] or "/").lstrip("/").partition("/")
        ref, _, inside = rest.partition("/")
        revision = unquote(ref) if ref else "main"
        if kind == "branch":
            is_new = revision not in repository.refs
            repository.refs.setdefault(revision, repository.refs["main"])
            self.reply(200 if is_new else 409)
            return
        files = repository.files(revision)
        if files is None:
            self.reply(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        elif kind == "preupload":
            self.preupload(json.loads(body)["files"], files)
        elif kind == "commit":
            self.commit(repository, found[1], revision, body)
        elif kind == "tree":
            is_deep = self.query.get("recursive", [""])[0].lower() == "true"  # requests and httpx differ
            self.reply(200, self.tree(files, unquote(inside), is_deep))
        elif kind == "paths-info":
            wanted = json.loads(body)["paths"]
            entries = [entry for entry in self.tree(files, "", True) if entry["path"] in wanted]
            self.reply(200, entries)
        elif kind not in ("", "revision"):
            self.reply(404, {"error": "no such page"})
        else:
            siblings = []
            for name, content in sorted(files.items()):
                facts = self.large_facts(name, content)
                for lfs in facts.values():
                    lfs["sha256"] = lfs.pop("oid")
                siblings.append({"rfilename": name, "size": len(content), "blobId": git_id(content)} | facts)
            oid = repository.refs.get(revision, revision)
            self.reply(
                200,
                {
                    "id": found[1],
                    "modelId": found[1],
                    "sha": oid,
                    "private": repository.private,
                    "siblings": siblings,
                    "tags": [],
                },
            )

    def tree(self, files: dict[str, bytes], folder: str, is_deep: bool) -> list[dict[str, Any]]:
        """List the files and folders in a folder, recursively if asked."""
        entries: dict[str, dict[str, Any]] = {}
        start = f"{folder}/" if folder else ""
        for name, content in sorted(files.items()):
            if not name.startswith(start):
                continue
            parts = name.removeprefix(start).split("/")
            for depth in range(1, len(parts)):
                inner = start + "/".join(parts[:depth])
                if is_deep or depth == 1:
                    entries[inner] = {"type": "directory", "path": inner, "size": 0, "oid": "0" * 40}
            if is_deep or len(parts) == 1:
                entry = {"type": "file", "path": name, "size": len(content), "oid": git_id(content)}
                entries[name] = entry | self.large_facts(name, content)
        return list(entries.values())

    def large_facts(self, name: str, content: bytes) -> dict[str, Any]:
        if not self.state.is_large(name):
            return {}
        return {"lfs": {"oid": sha256(content), "size": len(content), "pointerSize": 134}}

    def preupload(self, wanted: list[dict[str, Any]], there: dict[str, bytes]) -> None:
        answers = []
        for file in wanted:
            name = file["path"]
            is_large = self.state.is_large(name)
            entry = {"path": name, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            if name in there:
                entry["oid"] = sha256(there[name]) if is_large else git_id(there[name])
            answers.append(entry)
        self.reply(200, {"files": answers})

    def batch(self, objects: list[dict[str, Any]], name: str) -> None:
        answers = []
        for entry in objects:
            oid, size = entry["oid"], entry["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.state.stored:
                address, part = f"{self.state.address}/lfs/{oid}", self.state.part_bytes
                header: dict[str, str] = {}
                if part is not None:
                    header = {str(n + 1): f"{address}/part/{n}" for n in range(-(-size // part))}
                    header["chunk_size"] = str(part)
                upload = {"href": f"{address}/complete" if part else address, "header": header}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{address}/verify", "header": {}}}
            answers.append(answer)
        self.reply(200, {"transfer": "basic", "objects": answers})

    def large_file(self, body: bytes) -> None:
        _, _, oid, *rest = self.route.split("/")
        with self.state.lock:
            if rest[:1] == ["part"]:
                self.state.parts.setdefault(oid, {})[int(rest[1])] = body
            elif rest == ["complete"]:
                pieces = self.state.parts.pop(oid)
                body = b"".join(pieces[number] for number in sorted(pieces))
            if rest in ([], ["complete"]):
                if sha256(body) != oid:
                    self.reply(400, {"error": "checksum"})
                    return
                self.state.stored[oid] = body
        self.reply(200 if rest != ["verify"] or oid in self.state.stored else 404, headers={"ETag": "part"})

    def commit(self, repository: Repository, name: str, revision: str, body: bytes) -> None:
        files, message = dict(repository.files(revision) or {}), ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.state.stored[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        answer: dict[str, Any] = {}
        if self.query.get("create_pr"):
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
            revision = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.state.address}/{name}/discussions/{number}"
        oid = repository.commit(revision, files, message)
        answer |= {"commitUrl": f"{self.state.address}/{name}/commit/{oid}", "commitOid": oid}
        self.reply(200, answer)

    def resolve(self, repository: Repository, revision: str, name: str) -> None:
        data = (repository.files(revision) or {}).get(name)
        if data is None:
            self.reply(404, {}, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "no such file"})
            return
        commit = repository.refs.get(revision, revision)
        headers, status = {"ETag": f'"{sha256(data)}"', "X-Repo-Commit": commit}, 200
        wanted = self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last), len(data) - 1) if last else len(data) - 1
            headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
            data, status = data[int(first) : end + 1], 206
        if self.command != "HEAD":
            self.state.sent[name] = self.state.sent.get(name, 0) + len(data)
        self.reply(status, data, headers)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def running_hub() -> Iterator[HubState]:
    """Run a Hub for the duration of the block."""
    state = HubState()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, state))
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that was killed
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_hub(state: HubState, cache: Path, monkeypatch: pytest.MonkeyPatch, token: str = TOKEN) -> None:
    """Make this process use the server as the Hub."""
    for module in (huggingface_hub.constants, huggingface_hub.hf_api, huggingface_hub.file_download):
        for name, value in {
            "ENDPOINT": state.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": state.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
        }.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", state.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", token)


def hub_environment(state: HubState, home: Path, token: str = TOKEN) -> dict[str, str]:
    """Return the environment in which another process uses the server as the Hub."""
    return {
        "HF_ENDPOINT": state.address,
        "HF_HOME": str(home),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
