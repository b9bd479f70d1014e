"""`push_to_hub` sends all that readers of the Hub need; a server on this machine takes what the Hub takes."""

from __future__ import annotations

import base64
import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from grouped_pairs import write_pair

from gqkva_convert.modeling.loading import load_model

PUSH = """
import sys, transformers
import gqkva_convert
model = transformers.AutoModelForMaskedLM.from_pretrained(sys.argv[1])
model.push_to_hub("owner/model", token="hf_" + "s" * 34)
"""
LOAD = """
import sys
sys.modules["gqkva_convert"] = None
import torch, transformers
model = transformers.AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
with torch.inference_mode():
    torch.save(model(**torch.load(sys.argv[2])).logits, sys.argv[3])
"""


class Hub(BaseHTTPRequestHandler):
    """The routes of an upload without large-file storage: whoami, create, preupload and commit."""

    def __init__(self, folder: Path, *arguments: Any) -> None:
        self.folder = folder
        super().__init__(*arguments)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.answer({"name": "owner", "type": "user", "siblings": [], "sha": "0" * 40, "id": "owner/model"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = f"http://{self.headers['Host']}/owner/model"
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    (self.folder / entry["value"]["path"]).write_bytes(content)
            self.answer({"commitUrl": f"{address}/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self.answer({"url": address, "name": "owner/model"})

    def answer(self, data: dict[str, Any]) -> None:
        text = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A Hub's address, and the folder that holds what it was sent."""
    folder = tmp_path / "hub"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_what_is_pushed_loads_without_this_package(
    hub: tuple[str, Path], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """The modelling file must be among what is sent, or nobody else could load it."""
    address, uploaded = hub
    grouped, _ = write_pair(tiny("bert"), "GQKVA", tmp_path)
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_OFFLINE", None)
    subprocess.run([sys.executable, "-c", PUSH, grouped], check=True, env=environment)
    assert {"config.json", "model.safetensors", "modeling_gqkva_bert.py"} <= {
        path.name for path in uploaded.iterdir()
    }
    model = load_model(grouped, "")
    torch.save(tiny_models.inputs(model), tmp_path / "inputs.pt")
    arguments = [uploaded, tmp_path / "inputs.pt", tmp_path / "logits.pt"]
    subprocess.run([sys.executable, "-c", LOAD, *arguments], check=True, env=environment)
    found = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(found, tiny_models.outputs(model), rtol=1e-5, atol=1e-5)
