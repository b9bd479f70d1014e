"""verify must fail for every way in which an output can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import Result

from gqkva_convert import convert, verify

Run = Callable[..., Result]


@pytest.fixture
def converted(llama: Path, gqkva: Run) -> Path:
    """A conversion of the tiny Llama into one file."""
    out = llama.parent / "out"
    assert (
        gqkva("convert", llama, out, "--gkv", "2", "--merge", "mean", "--max-shard-size", "1GB").exit_code
        == 0
    )
    return out


def failed(result: dict[str, object]) -> list[str]:
    return [check["check"] for check in result["checks"] if not check["passed"]]


def poke(folder: Path, name: str, value: float | None = None) -> None:
    """Change one element of a tensor in place, leaving header and size alone."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    before = path.read_bytes()
    raw = tensors[name].tobytes()
    start = before.index(raw)
    changed = tensors[name].copy()
    changed.flat[1] = changed.flat[1] + 0.5 if value is None else value
    path.write_bytes(before[:start] + changed.tobytes() + before[start + len(raw) :])


def test_a_sound_output_passes_and_keeps_its_proof(converted: Path, llama: Path, gqkva: Run) -> None:
    """The proof travels with the weights."""
    result = gqkva("verify", converted, "--against", llama)
    assert result.exit_code == 0, result.output
    proof = json.loads((converted / "gqkva_report.json").read_text())["verification"]
    assert proof["passed"]
    assert proof["against"] == str(llama)
    assert set(proof["sha256"]) == {"model.safetensors"}
    assert "logits" in result.stdout
    assert not list(converted.glob(".*"))


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.up_proj.weight"]
)
def test_a_changed_weight_is_found_against_the_source(
    name: str, converted: Path, llama: Path, gqkva: Run
) -> None:
    """Merged or copied, every tensor is recomputed."""
    poke(converted, name)
    result = verify(converted, llama)
    assert failed(result) == ["recomputed from the source"]
    assert name in str(result["checks"])
    line = gqkva("verify", converted, "--against", llama)
    assert line.exit_code == 9
    assert "error: " in line.stderr


@pytest.mark.parametrize(("noise", "passes"), [(1e-7, True), (1e-3, False)])
@pytest.mark.parametrize("merge", ["closed-form", "mean"])
def test_products_of_another_processor_are_no_fault(
    noise: float, passes: bool, merge: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their rounding moves some values of a closed form to the next stored one; means have no products."""
    from gqkva_convert.steps import merged_blocks

    out = convert(llama, tmp_path / "out", gkv=2, merge=merge)
    exact, draw = merged_blocks.merge_block, np.random.default_rng(0)

    def elsewhere(*arguments: Any) -> dict[tuple[str, int], Any]:
        heads = exact(*arguments)
        return {
            place: (head * (1 + noise * draw.standard_normal(head.shape))).astype(head.dtype)
            for place, head in heads.items()
        }

    monkeypatch.setattr(merged_blocks, "merge_block", elsewhere)
    result = verify(out, llama)
    (found,) = [check for check in result["checks"] if check["check"] == "recomputed from the source"]
    assert found["passed"] == (passes or merge == "mean")
    assert ("differ by rounding" in found["detail"]) == (passes and merge == "closed-form")


def test_a_weight_changed_after_the_proof_is_found_without_the_source(converted: Path) -> None:
    """Checksums of the last verification are kept for this."""
    assert verify(converted)["passed"]
    poke(converted, "model.norm.weight")
    assert failed(verify(converted)) == ["checksums"]
    assert failed(verify(converted)) == ["checksums"], "a failed folder became its own measure"


def test_nan_is_found(converted: Path) -> None:
    """A damaged download can hold a NaN that no header shows."""
    poke(converted, "model.layers.0.mlp.down_proj.weight", np.nan)
    assert "finite values" in failed(verify(converted))


def test_a_configuration_that_lies_is_found(converted: Path, gqkva: Run) -> None:
    """Published models with a wrong num_key_value_heads are found by their users; not this one."""
    config = json.loads((converted / "config.json").read_text())
    (converted / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 3}))
    result = gqkva("verify", converted)
    assert result.exit_code == 9
    assert "num_key_value_heads" in result.stdout or "layouts" in result.stdout


@pytest.mark.parametrize(
    ("key", "value"),
    [("rope_parameters", {"rope_theta": 5e5, "rope_type": "default"}), ("rms_norm_eps", 0.1)],
)
def test_any_changed_setting_is_found(key: str, value: object, converted: Path, llama: Path) -> None:
    """A wrong rotary base leaves every tensor right and every answer wrong."""
    config = json.loads((converted / "config.json").read_text())
    (converted / "config.json").write_text(json.dumps(config | {key: value}))
    assert "configuration" in failed(verify(converted))
    assert "configuration from the source" in failed(verify(converted, llama))


def test_a_damaged_report_is_one_line(converted: Path, gqkva: Run) -> None:
    """Reports are edited by hand and cut by full disks."""
    path = converted / "gqkva_report.json"
    report = json.loads(path.read_text())
    del report["source"]["bytes"]
    for text, field in (('{"format_version": 1}', "source"), (json.dumps(report), "source.bytes")):
        path.write_text(text)
        for command in ("verify", "inspect"):
            result = gqkva(command, converted)
            assert (result.exit_code, len(result.stderr.strip().splitlines())) == (9, 1)
            assert f"is damaged or of another version: {field}: " in result.stderr


def test_a_model_that_transformers_cannot_load_fails_the_proof(
    converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check must report what transformers says, not crash with it."""
    import transformers

    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("size mismatch for k_proj\nmore")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", broken)
    result = verify(converted)
    assert failed(result) == ["loads in transformers"]
    assert "RuntimeError: size mismatch for k_proj" in str(result["checks"])


def test_a_missing_or_renamed_tensor_is_found(converted: Path) -> None:
    """Names, shapes and dtypes are compared with the report."""
    path = converted / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float16)
    save_file(tensors, path, metadata={"format": "pt"})
    assert "files, names, shapes, dtypes" in failed(verify(converted))


def test_another_source_is_not_accepted(converted: Path, llama: Path) -> None:
    """A proof against the wrong model proves nothing."""
    shard = sorted(llama.glob("*.safetensors"))[0]
    tensors = load_file(shard)
    save_file(
        {name: tensor.astype(np.float64) for name, tensor in tensors.items()},
        shard,
        metadata={"format": "pt"},
    )
    assert failed(verify(converted, llama)) == ["source"]


def test_heads_in_the_wrong_order_fail_the_logit_checks(llama: Path, gqkva: Run) -> None:
    """The field's classic mistake, planted: a plan whose order the weights do not follow."""
    out = llama.parent / "out"
    assert gqkva("convert", llama, out, "--gkv", "2", "--grouping", "random", "--seed", "1").exit_code == 0
    path = out / "gqkva_report.json"
    report = json.loads(path.read_text())
    assert report["plan"]["blocks"][0]["order"] is not None
    for block in report["plan"]["blocks"]:
        block["order"] = block["order"][::-1]
    path.write_text(json.dumps(report))
    assert "recomputed from the source" in failed(verify(out, llama))


def test_a_model_can_be_proven_on_a_few_layers(converted: Path, llama: Path) -> None:
    """A 70B model does not fit; the check says which layers it ran."""
    result = verify(converted, llama, layers=1)
    assert result["passed"]
    assert any("layers 0 of 2" in check["detail"] for check in result["checks"])


def test_random_heads_are_proven_as_far_as_they_can_be(llama: Path, gqkva: Run) -> None:
    """Heads drawn anew cannot be had from equal ones; the rest of the proof still holds."""
    out = llama.parent / "out"
    assert gqkva("convert", llama, out, "--gkv", "2", "--merge", "random", "--seed", "3").exit_code == 0
    result = verify(out, llama)
    assert result["passed"]
    assert any("not applicable" in check["detail"] for check in result["checks"])
