"""`gqkva push` as users run it: a process of its own, with the Hub's address and token in its environment."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny_models
from hub_server import TOKEN, HubState, hub_environment, running_hub

from gqkva_convert import convert, verify

pytestmark = pytest.mark.slow
REPO = "owner/large"
LOAD = "import sys, transformers; transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])"


def command(folder: Path, hub: HubState, *more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **hub_environment(hub, folder.parent / "home")}
    return subprocess.Popen(
        [sys.executable, "-m", "gqkva_convert", "push", str(folder), REPO, *more],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_interrupted_push_goes_on_where_it_was(tmp_path: Path) -> None:
    """Ctrl-C in the middle of 140 GB: what has arrived is not sent again, and what is there loads."""
    model = tiny_models.build("llama", "LlamaForCausalLM", vocab_size=90_000)
    source = tiny_models.save(model, tmp_path / "source", max_shard_size="9MB")
    folder = convert(source, tmp_path / "out", gkv=2)
    assert verify(folder)["passed"]
    shards = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}
    assert sum(path.stat().st_size > 8 << 20 for path in shards) >= 2
    last = max(shards, key=lambda path: (path.stat().st_size, path.name))
    with running_hub() as hub:
        released = threading.Event()
        hub.fail(f"PUT /lfs/{shards[last]}", until=released, after_bytes=1 << 20)
        process = command(folder, hub)
        for _ in range(600):
            if hub.received.get(shards[last], 0) >= 1 << 20:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        released.set()
        assert process.returncode == 130, errors
        assert "run the same command again to resume" in errors
        assert "Traceback" not in errors
        assert len(hub.repositories[REPO].messages) == 1
        assert set(hub.stored) == set(shards.values()) - {shards[last]}
        hub.received.clear()
        process = command(folder, hub)
        second, more = process.communicate(timeout=120)
        assert process.returncode == 0, more
        assert hub.received == {shards[last]: last.stat().st_size}
        assert second.startswith(f"{hub.address}/{REPO}/commit/")
        assert TOKEN not in out + errors + second + more
        environment = {**os.environ, **hub_environment(hub, tmp_path / "home")}
        subprocess.run([sys.executable, "-c", LOAD, REPO], env=environment, check=True)
        # Nobody listens there any more.
    process = command(folder, hub)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 8
    assert "the Hub cannot be reached" in errors
    assert errors.count("trying again") == 3
