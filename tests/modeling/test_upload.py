"""`push_to_hub` sends all that readers of the Hub need; a server on this machine takes what the Hub takes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from grouped_pairs import write_pair
from hub_server import hub_environment, running_hub

from gqkva_convert.modeling.loading import load_model

PUSH = """
import sys, transformers
import gqkva_convert
model = transformers.AutoModelForMaskedLM.from_pretrained(sys.argv[1])
model.push_to_hub("owner/model")
"""
LOAD = """
import sys
sys.modules["gqkva_convert"] = None
import torch, transformers
model = transformers.AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
with torch.inference_mode():
    torch.save(model(**torch.load(sys.argv[2])).logits, sys.argv[3])
"""


@pytest.mark.slow
def test_what_is_pushed_loads_without_this_package(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """The modelling file must be among what is sent, or nobody else could load it."""
    grouped, _ = write_pair(tiny("bert"), "GQKVA", tmp_path)
    with running_hub() as hub:
        environment = {**os.environ, **hub_environment(hub, tmp_path / "home")}
        subprocess.run([sys.executable, "-c", PUSH, grouped], check=True, env=environment)
        uploaded = hub.download("owner/model", tmp_path / "hub")
    assert {"config.json", "model.safetensors", "modeling_gqkva_bert.py"} <= {
        path.name for path in uploaded.iterdir()
    }
    model = load_model(grouped, "")
    torch.save(tiny_models.inputs(model), tmp_path / "inputs.pt")
    arguments = [uploaded, tmp_path / "inputs.pt", tmp_path / "logits.pt"]
    subprocess.run([sys.executable, "-c", LOAD, *arguments], check=True, env=environment)
    found = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(found, tiny_models.outputs(model), rtol=1e-5, atol=1e-5)
