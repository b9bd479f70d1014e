"""Hub ids, against a server on this machine that answers as the Hub does."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from typer.testing import Result

Run = Callable[..., Result]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = "hf_" + "s" * 34


class Hub(BaseHTTPRequestHandler):
    """The few routes that model_info, hf_hub_download and get_safetensors_metadata use."""

    def __init__(self, folder: Path, sent: dict[str, int], *arguments: Any) -> None:
        self.folder, self.sent = folder, sent
        super().__init__(*arguments)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        path = self.path.split("?")[0]
        if path.startswith(("/api/models/owner/gated", "/owner/gated/")):
            self.answer(403, b"", body, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        elif path.startswith("/api/models/owner/model/tree/"):
            self.answer(200, json.dumps(self.tree()).encode(), body, {"Content-Type": "application/json"})
        elif path.startswith("/api/models/owner/model"):
            self.answer(200, json.dumps(self.info()).encode(), body, {"Content-Type": "application/json"})
        elif path.startswith("/owner/model/resolve/"):
            self.file(path.split("/", 5)[5], body)
        else:
            self.answer(404, b"", body, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "not found"})

    def info(self) -> dict[str, Any]:
        files = []
        for path in sorted(self.folder.iterdir()):
            entry: dict[str, Any] = {"rfilename": path.name, "size": path.stat().st_size, "blobId": "0" * 40}
            if path.suffix in (".safetensors", ".bin"):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": path.stat().st_size, "pointerSize": 134}
            files.append(entry)
        return {"id": "owner/model", "modelId": "owner/model", "sha": COMMIT, "siblings": files, "tags": []}

    def tree(self) -> list[dict[str, Any]]:
        files = [path for path in sorted(self.folder.iterdir()) if path.is_file()]
        return [
            {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
            for path in files
        ]

    def file(self, name: str, body: bool) -> None:
        path = self.folder / name
        if not path.is_file():
            self.answer(404, b"", body, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "no such file"})
            return
        data, status, headers = path.read_bytes(), 200, {}
        etag = hashlib.sha256(data).hexdigest()
        wanted = self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last), len(data) - 1) if last else len(data) - 1
            headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
            data, status = data[int(first) : end + 1], 206
        if body:
            self.sent[name] = self.sent.get(name, 0) + len(data)
        self.answer(status, data, body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, **headers})

    def answer(self, status: int, data: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """A Hub that holds the tiny Llama as ``owner/model``; gives the bytes it sent of each file."""
    (llama / "pytorch_model.bin").write_bytes(b"never fetched")
    (llama / "modeling_evil.py").write_text("raise SystemExit")
    sent: dict[str, int] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, llama, sent))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    for module in (huggingface_hub.constants, huggingface_hub.hf_api, huggingface_hub.file_download):
        for name, value in {
            "ENDPOINT": address,
            "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
        }.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.chdir(tmp_path)
    yield sent
    server.shutdown()
    server.server_close()
    thread.join()


def test_inspect_reads_headers_over_the_network_and_no_weights(
    hub: dict[str, int], llama: Path, gqkva: Run
) -> None:
    """Looking at a 140 GB model must not cost a 140 GB download."""
    remote = gqkva("inspect", "owner/model", "--json")
    assert remote.exit_code == 0, remote.output
    local = json.loads(gqkva("inspect", llama, "--json").stdout)
    found = json.loads(remote.stdout)
    assert {**found, "model": None} == {**local, "model": None}
    assert "pytorch_model.bin" not in hub
    assert "modeling_evil.py" not in hub


def test_convert_fetches_what_it_needs_and_records_the_commit(
    hub: dict[str, int], llama: Path, tmp_path: Path, gqkva: Run
) -> None:
    """A report must say which revision was converted, with the checksums the Hub states."""
    result = gqkva("convert", "owner/model", "--gkv", "2", "--revision", "main")
    assert result.exit_code == 0, result.output
    out = tmp_path / "model-gqa-2"
    report = json.loads((out / "gqkva_report.json").read_text())
    assert report["source"]["revision"] == COMMIT
    for name, entry in report["source"]["files"].items():
        assert entry["sha256"] == hashlib.sha256((llama / name).read_bytes()).hexdigest()
    assert not {"pytorch_model.bin", "modeling_evil.py"} & hub.keys()
    assert not list(out.glob("*.py"))
    assert SECRET not in result.output + (out / "gqkva_report.json").read_text()
    assert gqkva("verify", out, "--against", "owner/model").exit_code == 0


@pytest.mark.parametrize(("name", "words"), [("owner/absent", "no Hub model"), ("owner/gated", "gated")])
def test_a_model_the_hub_does_not_give_is_one_line(
    name: str, words: str, hub: dict[str, int], gqkva: Run
) -> None:
    """A misspelt name and a licence not yet accepted are the two usual reasons."""
    for command in (["inspect", name], ["convert", name, "--gkv", "2"]):
        result = gqkva(*command)
        assert result.exit_code == 8, result.output
        assert words in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        assert SECRET not in result.stderr


@pytest.mark.parametrize("how", ["offline", "unreachable"])
def test_without_a_network_the_reason_is_named(how: str, gqkva: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters often have no route to the Hub."""
    if how == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:9")
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    result = gqkva("convert", "owner/never-cached", "--gkv", "2")
    assert result.exit_code == 8, result.exception
    assert "error: owner/never-cached is no folder here" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_what_can_be_refused_is_refused_before_the_download(hub: dict[str, int], gqkva: Run) -> None:
    """A wrong number of heads must not cost a 140 GB download first."""
    result = gqkva("convert", "owner/model", "--gkv", "4")
    assert result.exit_code == 2
    assert "choose one of [1, 2, 3, 6]" in result.stderr
    assert "config.json" in hub
    assert "generation_config.json" not in hub, "the model was downloaded before it was refused"


@pytest.mark.parametrize("name", ["foo--bar", "my..model", "x" * 97])
def test_a_misspelt_folder_that_no_hub_id_can_be_is_one_line(name: str, gqkva: Run) -> None:
    """The Hub's own validator raises; the user only mistyped a path."""
    result = gqkva("inspect", name)
    assert result.exit_code == 8, result.exception
    assert "no possible Hub id" in result.stderr


def test_a_cached_model_needs_no_network(
    hub: dict[str, int], gqkva: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compute nodes often have the cache and no route to the Hub."""
    assert gqkva("convert", "owner/model", "first", "--gkv", "2", "--revision", COMMIT).exit_code == 0
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    result = gqkva("convert", "owner/model", "second", "--gkv", "2", "--revision", COMMIT)
    assert result.exit_code == 0, result.output
