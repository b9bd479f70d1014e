"""Every stock class that a family lists converts, loads through its Auto classes and says the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
import transformers
from grouped_pairs import write_pair
from typer.testing import Result

from gqkva_convert import convert, export, init, inspect, verify
from gqkva_convert.architectures import FAMILIES
from gqkva_convert.modeling.families import GROUPED_FAMILIES
from gqkva_convert.modeling.loading import example_inputs, load_model, main_output

Run = Callable[..., Result]

# Classes that store a part of their family's attention, and classes whose tensors no other test reads.
PARTS = {name for family in FAMILIES.values() for name in family.parts} | {"PhiForTokenClassification"}
CLASSES = [
    pytest.param(family.model_type, name, marks=() if name in PARTS else pytest.mark.slow)
    for family in GROUPED_FAMILIES.values()
    for name in dict.fromkeys(name for names in family.auto_classes.values() for name in names)
]


@torch.inference_mode()
def answer(model: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = main_output(model(**example_inputs(model)))
    return found


def options(family: str) -> tuple[str, ...]:
    """A variant that no stock class holds; CLIP's towers have no number of heads in common."""
    return ("--gkv", "2") if family in ("clip", "siglip") else ("--gq", "2", "--gkv", "3")


@pytest.mark.parametrize(("family", "name"), CLASSES)
def test_every_class_converts_loads_and_says_the_same(
    family: str, name: str, tmp_path: Path, gqkva: Run
) -> None:
    """On heads that agree already, against the stock class: nothing of it may be lost or left random."""
    source = tiny_models.save(tiny_models.build(family, name), tmp_path / "source")
    _, stock = write_pair(source, "GQA" if family in ("clip", "siglip") else "GQKVA", tmp_path)
    result = gqkva("convert", stock, tmp_path / "out", *options(family))
    assert result.exit_code == 0, result.stderr
    expected = answer(load_model(stock, ""))
    for auto, names in GROUPED_FAMILIES[family].auto_classes.items():
        if name in names:
            model, info = getattr(transformers, auto).from_pretrained(
                tmp_path / "out", output_loading_info=True
            )
            assert type(model).__name__ == f"Gqkva{name}"
            assert not info["missing_keys"], info
            assert not info["unexpected_keys"], info
            assert any(hasattr(module, "head_maps") for module in model.modules())
            found = answer(model.eval())
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    if name in PARTS:
        proof = verify(tmp_path / "out", stock)
        assert proof["passed"], [check for check in proof["checks"] if not check["passed"]]


@pytest.mark.parametrize(
    ("family", "name"), [(family.model_type, name) for family in FAMILIES.values() for name in family.parts]
)
def test_a_part_of_a_model_exports_and_starts_afresh(
    family: str, name: str, tmp_path: Path, gqkva: Run
) -> None:
    """`export`, `init` and `inspect` read the same table."""
    source = tiny_models.save(tiny_models.build(family, name), tmp_path / "source")
    convert(source, tmp_path / "out", gkv=2)
    out = export(tmp_path / "out", tmp_path / "stock")
    stock, grouped = load_model(out, ""), load_model(tmp_path / "out", "")
    assert type(stock).__name__ == name
    torch.testing.assert_close(answer(stock), answer(grouped), rtol=1e-4, atol=1e-4)
    init(family, tmp_path / "fresh", gkv=2, config=source / "config.json", task=name)
    assert type(load_model(tmp_path / "fresh", "")).__name__ == f"Gqkva{name}"
    kinds = [kind["kind"] for kind in inspect(tmp_path / "fresh")["attention"]]
    assert tuple(kinds) == FAMILIES[family].parts[name]
    missing = next(block.kind for block in FAMILIES[family].attention if block.kind not in kinds)
    refused = gqkva("convert", source, tmp_path / "refused", "--gkv", "2", "--blocks", missing)
    assert refused.exit_code != 0
    assert f"has no {missing} attention; choose of {', '.join(sorted(kinds))}" in refused.stderr


def test_a_whole_class_with_a_part_missing_is_refused(tmp_path: Path, gqkva: Run) -> None:
    """An interrupted download must not pass for an encoder alone."""
    model = tiny_models.build("t5", "T5EncoderModel")
    source = tiny_models.save(model, tmp_path / "source")
    path = source / "config.json"
    path.write_text(path.read_text().replace("T5EncoderModel", "T5ForConditionalGeneration"))
    result = gqkva("convert", source, tmp_path / "out", "--gkv", "2")
    assert result.exit_code == 4
    assert "layer 0, decoder attention: 'decoder.block.0.layer.0.SelfAttention.q.weight'" in result.stderr
