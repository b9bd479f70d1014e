"""A converted folder loads with torch and transformers alone, and runs no code unless asked to."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from grouped_pairs import load_pair

import gqkva_convert
from gqkva_convert.modeling.bundle import modeling_text
from gqkva_convert.modeling.families import GROUPED_FAMILIES

Tiny = Callable[[str], Path]

# What a machine without this package does; an import of it fails there.
WITHOUT_US = """
import json, sys
sys.modules["gqkva_convert"] = None
import torch, transformers
auto, folder, inputs, saved = sys.argv[1:]
loader = getattr(transformers, auto)
model = loader.from_pretrained(folder, trust_remote_code=True).eval()
arguments = torch.load(inputs, weights_only=True)
with torch.inference_mode():
    output = model(**arguments)
model.save_pretrained(saved)
again = loader.from_pretrained(saved, trust_remote_code=True).eval()
with torch.inference_mode():
    second = again(**arguments)
name = "logits" if "logits" in output else "logits_per_text"
assert torch.equal(output[name], second[name])
torch.save(output[name], inputs + ".out")
"""


@pytest.mark.parametrize("family", GROUPED_FAMILIES.values(), ids=list(GROUPED_FAMILIES))
def test_the_file_needs_torch_and_transformers_only(family: object) -> None:
    """It is read by people and by transformers' own check of imports."""
    tree = ast.parse(modeling_text(family))  # type: ignore[arg-type]
    modules = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        if name
    }
    assert modules - set(sys.stdlib_module_names) == {"torch", "transformers"}
    names = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("family", "variant", "auto"),
    [
        ("bert", "GQKVA", "AutoModelForMaskedLM"),
        ("gpt_neox", "unequal", "AutoModelForCausalLM"),
        pytest.param("opt", "MQA", "AutoModelForCausalLM", marks=pytest.mark.slow),
        pytest.param("olmo2", "unequal", "AutoModelForCausalLM", marks=pytest.mark.slow),
        pytest.param("vit", "GKVA", "AutoModelForImageClassification", marks=pytest.mark.slow),
        pytest.param("t5", "mixed", "AutoModelForSeq2SeqLM", marks=pytest.mark.slow),
        pytest.param("dinov2", "GQA", "AutoModelForImageClassification", marks=pytest.mark.slow),
        pytest.param("clip", "MKVA", "AutoModel", marks=pytest.mark.slow),
    ],
)
def test_a_folder_loads_without_this_package(
    family: str, variant: str, auto: str, tiny: Tiny, tmp_path: Path
) -> None:
    """Loaded, run, saved and loaded again by transformers alone, it says what it says here."""
    grouped, _ = load_pair(tiny(family), variant, tmp_path)
    text = modeling_text(grouped.family)
    (tmp_path / "grouped" / f"modeling_gqkva_{family}.py").write_text(text)
    inputs = tmp_path / "inputs.pt"
    torch.save(tiny_models.inputs(grouped), inputs)
    subprocess.run(
        [sys.executable, "-c", WITHOUT_US, auto, tmp_path / "grouped", inputs, tmp_path / "saved"],
        check=True,
        env={"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": ""},
    )
    found = torch.load(f"{inputs}.out", weights_only=True)
    torch.testing.assert_close(found, tiny_models.outputs(grouped), rtol=1e-5, atol=1e-5)
    assert (tmp_path / "saved" / f"modeling_gqkva_{family}.py").read_text() == text


def test_a_tampered_file_is_not_run_unless_asked_for(tiny: Tiny, tmp_path: Path) -> None:
    """Here the package's own classes are used; elsewhere transformers refuses."""
    grouped, _ = load_pair(tiny("bert"), "GQKVA", tmp_path)
    folder, trace = tmp_path / "grouped", tmp_path / "trace"
    name = "modeling_gqkva_bert.py"
    (folder / name).write_text(f"open({str(trace)!r}, 'w').close()\n{modeling_text(grouped.family)}")
    load = "transformers.AutoModelForMaskedLM.from_pretrained(sys.argv[1])"
    ours = f"import gqkva_convert, sys, transformers\n{load}"
    subprocess.run([sys.executable, "-c", ours, folder], check=True, capture_output=True)
    theirs = f"import sys\nsys.modules['gqkva_convert'] = None\nimport transformers\n{load}"
    refused = subprocess.run(
        [sys.executable, "-c", theirs, folder], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert refused.returncode != 0
    assert "trust_remote_code" in refused.stderr
    assert not trace.exists()


def test_converting_writes_the_file_and_says_how_to_load(
    tiny: Tiny, tmp_path: Path, gqkva: Callable[..., object]
) -> None:
    """The folder is complete by itself."""
    result = gqkva("convert", tiny("bert"), tmp_path / "out", "--gq", "2", "--gkv", "3")
    assert "trust_remote_code=True" in result.stdout  # type: ignore[attr-defined]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "gqkva_bert"
    assert config["auto_map"]["AutoModelForMaskedLM"] == "modeling_gqkva_bert.GqkvaBertForMaskedLM"
    assert config["attention_layouts"]["self"][0]["variant"] == "GQKVA-2.3"
    text = (tmp_path / "out" / "modeling_gqkva_bert.py").read_text()
    assert gqkva_convert.__version__ in text
