"""A converted folder loads with torch and transformers alone, and runs no code unless asked to."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
import transformers
from grouped_pairs import load_pair

import gqkva_convert
from gqkva_convert import convert
from gqkva_convert.errors import LayoutError
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


def test_the_file_needs_torch_and_transformers_only() -> None:
    """It is read by people and by transformers' own check of imports."""
    needed = {}
    for model_type, family in GROUPED_FAMILIES.items():
        tree = ast.parse(modeling_text(family))
        modules = {
            name.partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
            if name
        }
        needed[model_type] = modules - set(sys.stdlib_module_names)
        names = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        assert len(names) == len(set(names)), model_type
    assert needed == {model_type: {"torch", "transformers"} for model_type in GROUPED_FAMILIES}


@pytest.mark.parametrize(
    ("family", "variant", "auto"),
    [
        # All families, with torch and transformers alone: .ci/load_without_us.py.
        pytest.param("bert", "GQKVA", "AutoModelForMaskedLM", marks=pytest.mark.slow),
        # A model type that is no Python name.
        pytest.param("xlm-roberta", "GQKVA", "AutoModelForMaskedLM", marks=pytest.mark.slow),
        pytest.param("gpt_neox", "unequal", "AutoModelForCausalLM", marks=pytest.mark.slow),
        pytest.param("llama", "GQKVA", "AutoModelForSequenceClassification", marks=pytest.mark.slow),
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
    source = tiny(family)
    if auto == "AutoModelForSequenceClassification":  # builds its base model through AutoModel
        model = tiny_models.build(family, "LlamaForSequenceClassification", pad_token_id=0)
        source = tiny_models.save(model, tmp_path / "source")
    grouped, _ = load_pair(source, variant, tmp_path)
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
    (folder / name).write_text(f"{modeling_text(grouped.family)}\nopen({str(trace)!r}, 'w').close()\n")

    script = (
        "import sys\nfrom pathlib import Path\n"
        "sys.modules['gqkva_convert'] = None\nimport transformers\n"
        "load = transformers.AutoModelForMaskedLM.from_pretrained\n"
        "folder, trace = sys.argv[1], Path(sys.argv[2])\n"
        "try:\n    load(folder)\n"
        "except ValueError as error:\n    assert 'trust_remote_code=True' in str(error), error\n"
        "else:\n    sys.exit('it was loaded')\n"
        "assert not trace.exists(), 'it was run'\n"
        "load(folder, trust_remote_code=True)\n"
        "assert trace.exists(), 'a file that is run leaves a trace, or this shows nothing'\n"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", script, folder, trace]
    shown = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
    assert shown.returncode == 0, shown.stderr
    trace.unlink()
    assert transformers.AutoModelForMaskedLM.from_pretrained(folder).family.model_type == "bert"
    assert not trace.exists()


def test_our_commands_do_not_run_the_file(tiny: Tiny, tmp_path: Path, gqkva: Callable[..., object]) -> None:
    """A folder from elsewhere may be looked at, checked and exported without trusting it; verify tells."""
    out, trace = convert(tiny("bert"), tmp_path / "out", gkv=2), tmp_path / "trace"
    assert gqkva("verify", out).exit_code == 0  # type: ignore[attr-defined]
    file = out / "modeling_gqkva_bert.py"
    text = file.read_text()
    file.write_text(f"{text}\nopen({str(trace)!r}, 'w').close()\n")
    for arguments in (("inspect", out), ("export", out, tmp_path / "stock")):
        result = gqkva(*arguments)
        assert result.exit_code == 0, result.stderr  # type: ignore[attr-defined]
    refused = gqkva("verify", out)
    assert refused.exit_code == 9  # type: ignore[attr-defined]
    assert "modeling_gqkva_bert.py is not what gqkva" in refused.stderr  # type: ignore[attr-defined]
    assert not trace.exists()
    file.write_text(text.replace(f"gqkva {gqkva_convert.__version__} ", "gqkva 9.9.9 "))
    result = gqkva("verify", out)
    assert result.exit_code == 0  # type: ignore[attr-defined]
    assert "was not compared" in result.stdout  # type: ignore[attr-defined]
    file.unlink()
    assert "modeling_gqkva_bert.py is missing" in gqkva("verify", out).stderr  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("family", "files", "loader"),
    [
        ("bert", {"vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n"}, "AutoTokenizer"),
        ("vit", {"preprocessor_config.json": '{"size": {"height": 8, "width": 8}}'}, "AutoImageProcessor"),
        ("whisper", {"preprocessor_config.json": '{"feature_size": 8}'}, "AutoFeatureExtractor"),
    ],
)
def test_tokenizers_and_processors_name_their_classes(
    family: str, files: dict[str, str], loader: str, tiny: Tiny, tmp_path: Path
) -> None:
    """Many folders leave them to the model type, which a grouped model changes."""
    if loader == "AutoImageProcessor":
        pytest.importorskip("PIL")
    source = shutil.copytree(tiny(family), tmp_path / "source")
    for name, text in files.items():
        (source / name).write_text(text)
    out = convert(source, tmp_path / "out", gkv=2)
    try:
        load = getattr(transformers, loader).from_pretrained
        expected = type(load(source))
    except ImportError as error:
        pytest.skip(f"this version of transformers: {str(error).strip().splitlines()[0]}")
    assert type(load(out)) is expected
    if family == "bert":
        assert load(out).pad_token == "[PAD]"


def test_a_class_without_a_grouped_form_is_refused(tmp_path: Path, gqkva: Callable[..., object]) -> None:
    """Another class in its place would load with random weights."""
    model = tiny_models.build("gpt2", "GPT2DoubleHeadsModel", num_labels=1)
    source = tiny_models.save(model, tmp_path / "source")
    result = gqkva("convert", source, tmp_path / "out", "--gq", "2", "--gkv", "3")
    assert result.exit_code == 4  # type: ignore[attr-defined]
    assert "'GPT2DoubleHeadsModel', which has no grouped form" in result.stderr  # type: ignore[attr-defined]
    assert not (tmp_path / "out").exists()


def test_an_upload_carries_the_file(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`save_pretrained(push_to_hub=True)` uploads before it returns."""
    grouped, _ = load_pair(tiny("bert"), "GQKVA", tmp_path)
    seen: list[str] = []

    def upload(self: object, working_dir: str, *_: object, **__: object) -> None:
        seen.extend(path.name for path in Path(working_dir).iterdir())

    monkeypatch.setattr(transformers.utils.hub.PushToHubMixin, "_upload_modified_files", upload)
    (tmp_path / "saved").mkdir()
    grouped.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "modeling_gqkva_bert.py").unlink()
    grouped._upload_modified_files(tmp_path / "saved", "user/name", {})
    assert "modeling_gqkva_bert.py" in seen


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "cross"}, "names layer 0 of 'cross'"),
        ({"layers": [0, 7]}, "names layer 7 of 'self'"),
        ({"query": [0, 1, 1, 0], "key": [0, 1, 1, 0], "value": [0, 1, 1, 0]}, "4 heads of 5 features"),
    ],
)
def test_edited_layouts_that_cannot_be_are_refused(
    change: dict[str, object], words: str, tiny: Tiny, tmp_path: Path, gqkva: Callable[..., object]
) -> None:
    """The same in inspect and when the model is built."""
    load_pair(tiny("bert"), "GQKVA", tmp_path)
    path = tmp_path / "grouped" / "config.json"
    config = json.loads(path.read_text())
    (entry,) = config["attention_layouts"].pop("self")
    kind = change.pop("kind", "self")
    config["attention_layouts"][kind] = [{**entry, **change}]
    path.write_text(json.dumps(config))
    result = gqkva("inspect", tmp_path / "grouped")
    assert result.exit_code == 4  # type: ignore[attr-defined]
    assert words in result.stderr  # type: ignore[attr-defined]
    with pytest.raises(LayoutError, match="attention_layouts"):
        transformers.AutoModel.from_pretrained(tmp_path / "grouped")


def test_a_class_that_there_is_none_of_is_refused(
    tiny: Tiny, tmp_path: Path, gqkva: Callable[..., object]
) -> None:
    """A misspelt one would otherwise be built as another."""
    load_pair(tiny("bert"), "GQKVA", tmp_path)
    path = tmp_path / "grouped" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "architectures": ["GqkvaNope"]}))
    result = gqkva("inspect", tmp_path / "grouped")
    assert result.exit_code == 4  # type: ignore[attr-defined]
    assert "names the class 'GqkvaNope'; grouped ones of bert are" in result.stderr  # type: ignore[attr-defined]


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
