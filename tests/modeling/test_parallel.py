"""Tensor parallelism gives each process a part of the heads, where a layout has equal parts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import grouped_pairs
import pytest
import tiny_models
import torch
from grouped_pairs import write_pair

from gqkva_convert.architectures import FAMILIES
from gqkva_convert.errors import LayoutError
from gqkva_convert.heads import HeadLayout
from gqkva_convert.modeling.loading import load_model

GENERATION = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

# What each of two processes does; the first one keeps the result.
PROCESS = f"""
import os, sys
sys.path.insert(0, sys.argv[3])
import tiny_models, torch, transformers
import gqkva_convert
from transformers.distributed import DistributedConfig
model = transformers.AutoModelForCausalLM.from_pretrained(
    sys.argv[1], distributed_config=DistributedConfig(tp_size=2), dtype=torch.float32
).eval()
inputs = tiny_models.inputs(model)
with torch.inference_mode():
    logits = model(**inputs).logits
    tokens = model.generate(**inputs, **{GENERATION})
if os.environ["RANK"] == "0":
    torch.save((logits, tokens), sys.argv[2])
torch.distributed.destroy_process_group()
"""


def two_processes(folder: Path, result: Path) -> subprocess.CompletedProcess[str]:
    """Load a folder over two gloo processes."""
    script = result.with_suffix(".py")
    script.write_text(PROCESS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    support = Path(tiny_models.__file__).parent
    return subprocess.run(
        [*launcher, script, folder, result, support], capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variants with equal neighbour groups that no stock model holds."""
    made = grouped_pairs.layout

    def layout(variant: str, heads: int, head_dim: int, layer: int = 0) -> HeadLayout:
        if variant == "GQA by layer":
            return HeadLayout.gqa(heads, (2, heads)[layer % 2], head_dim)
        if variant == "GKVA-2":
            return HeadLayout.gkva(heads, 2, head_dim)
        return made(variant, heads, head_dim, layer)

    monkeypatch.setattr(grouped_pairs, "layout", layout)


@pytest.mark.slow
@pytest.mark.usefixtures("by_layer")
@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("llama", "GQA by layer"),
        ("qwen3", "GKVA-2"),
        ("gpt_neox", "MHA"),  # one tensor, q, k and v of each head side by side
        ("phi3", "GQKVA"),  # transformers gives each process all heads of these two
        ("olmo2", "unequal"),
    ],
)
def test_two_processes_say_what_one_says(family: str, variant: str, tmp_path: Path) -> None:
    """Prefill and generation, with a cache of each process's heads."""
    # Two processes share out every width evenly.
    model = tiny_models.build(family, FAMILIES[family].architecture, vocab_size=40)
    folder, _ = write_pair(tiny_models.save(model, tmp_path / "source"), variant, tmp_path)
    whole = load_model(folder, "")
    done = two_processes(folder, tmp_path / "result.pt")
    assert done.returncode == 0, done.stderr
    logits, tokens = torch.load(tmp_path / "result.pt")
    with torch.inference_mode():
        expected = whole(**tiny_models.inputs(whole)).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert tokens.tolist() == whole.generate(**tiny_models.inputs(whole), **GENERATION).tolist()


@pytest.mark.slow
def test_two_processes_refuse_what_has_no_parts(tmp_path: Path) -> None:
    """Heads of one process would read keys of the other."""
    model = tiny_models.build("llama", "LlamaForCausalLM")
    folder, _ = write_pair(tiny_models.save(model, tmp_path / "source"), "unequal", tmp_path)
    done = two_processes(folder, tmp_path / "result.pt")
    assert done.returncode != 0
    assert "no tensor parallelism over 2 processes for model.layers.0.self_attn: unequal GQA-3" in done.stderr


@pytest.mark.parametrize(
    ("family", "variant", "reason"),
    [
        ("llama", "GQKVA", "GQKVA-2.3 cannot be split into 2 parts"),
        ("llama", "mixed", "GQKVA-2.3 cannot be split"),
        ("llama", "MKVA", "6 attention heads read 1 query heads"),
        ("gpt_neox", "GQKVA", "stored in one tensor, queries before keys before values"),
    ],
)
def test_layouts_without_parts_are_refused(family: str, variant: str, reason: str, tmp_path: Path) -> None:
    """Before any weight is read, with what to do instead."""
    model = tiny_models.build(family, FAMILIES[family].architecture)
    folder, _ = write_pair(tiny_models.save(model, tmp_path / "source"), variant, tmp_path)
    grouped = load_model(folder, "")
    with pytest.raises(LayoutError, match=reason) as caught:
        grouped.maybe_distribute_model(grouped, SimpleNamespace(tp_size=2, tp_plan=None), None)
    assert "convert to numbers of heads that 2 divides" in str(caught.value)
    assert grouped.maybe_distribute_model(grouped, SimpleNamespace(tp_size=1), None) is grouped
