"""Every family's record against transformers: classes, tokenizers, processors, positions, causality."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from transformers.models.auto import (
    configuration_auto,
    feature_extraction_auto,
    image_processing_auto,
    processing_auto,
    tokenization_auto,
)

from gqkva_convert.architectures import FAMILIES, Family
from gqkva_convert.architectures.schema import Inputs
from gqkva_convert.calibration.network import attention_blocks
from gqkva_convert.data.tasks import is_causal
from gqkva_convert.errors import FamilyError
from gqkva_convert.modeling.families import GROUPED_FAMILIES
from gqkva_convert.modeling.loading import load_model, text_positions
from gqkva_convert.modeling.resize import find_output, find_projection
from gqkva_convert.source.model import open_model

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
# Families whose positions are rows of a table.
LEARNED = [
    family
    for family in FAMILIES.values()
    if family.inputs.tokenizer is not None
    and family.inputs.processor is None
    and family.attention[0].rotary is None
    and family.attention[0].head_bias is None
]
TEXT = [family for family in FAMILIES.values() if family.inputs.image_processor is None]


def test_classes_are_those_of_transformers() -> None:
    """Auto classes are compared in `tests/modeling/test_models.py`; the rest of the names follow here."""
    configs = configuration_auto.CONFIG_MAPPING_NAMES
    assert {name: family.config_class for name, family in FAMILIES.items()} == {
        name: configs[name] for name in FAMILIES
    }
    stock = {name: set(GROUPED_FAMILIES[name].stock_classes) for name in FAMILIES}
    named = {name: {family.architecture, *family.parts} for name, family in FAMILIES.items()}
    assert {name: named[name] - stock[name] for name in FAMILIES if not named[name] <= stock[name]} == {}
    assert [name for names in stock.values() for name in names if not hasattr(transformers, name)] == []


@pytest.mark.parametrize(
    "task", ["CausalLM", "MaskedLM", "SequenceClassification", "ImageClassification", "Seq2SeqLM"]
)
def test_no_auto_class_of_text_or_images_is_forgotten(task: str) -> None:
    """A model of a class that a record lacks would be refused, though transformers has it."""
    names: Any = getattr(transformers, f"AutoModelFor{task}")._model_mapping._model_mapping
    forgotten = {}
    for family in FAMILIES.values():
        known = {name for classes in family.auto_classes.values() for name in classes}
        found = names.get(family.model_type, ())
        forgotten[family.model_type] = ({found} if isinstance(found, str) else {*found}) - known
    assert {name: classes for name, classes in forgotten.items() if classes} == {}


def inputs_of(model_type: str) -> Inputs:
    """The classes that transformers' own tables name."""
    images = image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {}
    return Inputs(
        tokenizer=tokenization_auto.TOKENIZER_MAPPING_NAMES.get(model_type),
        image_processor=images.get("torchvision"),
        feature_extractor=feature_extraction_auto.FEATURE_EXTRACTOR_MAPPING_NAMES.get(model_type),
        processor=processing_auto.PROCESSOR_MAPPING_NAMES.get(model_type),
    )


def test_inputs_are_those_of_transformers() -> None:
    """A grouped folder names them in place of its model type; a wrong one splits texts otherwise."""
    assert {name: family.inputs for name, family in FAMILIES.items()} == {
        name: inputs_of(name) for name in FAMILIES
    }


def test_decoders_begin_with_a_stated_token() -> None:
    """A decoder whose beginning nobody states would be trained to begin with another token."""
    stated = {name: family.decoder_start is not None for name, family in FAMILIES.items()}
    config = transformers.AutoConfig.for_model
    assert stated == {name: bool(config(name).is_encoder_decoder) for name in FAMILIES}


@every_family
def test_projections_are_found_by_their_names(family: Family, tiny: Callable[[str], Path]) -> None:
    """`modeling/resize.py` goes along with a checkpoint, and so holds the names of all families' modules."""
    model = load_model(tiny(family.model_type), family.architecture)
    blocks = attention_blocks(model)
    assert {kind for kind, _ in blocks} == {attention.kind for attention in family.attention}
    for attention in family.attention:
        block = blocks[attention.kind, 0]
        names = {find_projection(block, role) for role in ("query", "key", "value")}
        assert len(names) == len(attention.projections) - 1
        output = find_output(block)
        assert output is None or isinstance(getattr(block, output), torch.nn.Module)
        stored = next(p.name for p in attention.projections if p.roles == ("output",))
        is_inside = stored.rpartition(".")[0] == attention.projections[0].name.rpartition(".")[0]
        assert output is not None or not is_inside


def misplaced(family: Family, folder: Path) -> list[str]:
    """Tensors of blocks in whose names another layer is found or none, and other tensors in which one is."""
    model = open_model(folder)
    found = []
    for block in model.blocks:
        names = [block.tensor_name(f"{projection.name}.weight") for projection in block.attention.projections]
        layers = {name: model.find_layer(name) for name in names}
        found += [name for name, layer in layers.items() if layer is None or int(layer[1]) != block.layer]
    templates = [name for name in (*family.others, *family.known_heads()) if "{layer}" not in name]
    outside = tuple(model.prefix + name.rstrip("*") for name in templates) + tuple(templates)
    return found + [
        name for name in model.checkpoint.tensors if name.startswith(outside) and model.find_layer(name)
    ]


def test_layers_are_found_in_names_of_tensors(tiny: Callable[[str], Path]) -> None:
    """`verify` cuts large models to a few layers; a tensor that keeps its number would be lost or doubled."""
    assert {
        name: found for name, family in FAMILIES.items() if (found := misplaced(family, tiny(name)))
    } == {}


def changed_at_the_end(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs with another last token, patch or frame."""
    changed = {name: tensor.clone() for name, tensor in inputs.items()}
    for name, tensor in changed.items():
        if name == "pixel_values":
            tensor[..., -4:, -4:] += 1
        elif name.endswith("ids"):
            tensor[:, -1] = tensor[:, -1] % 30 + 4
        else:
            tensor[..., -1] += 1
    return changed


@torch.inference_mode()
def first_outputs(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the first block of each kind of attention gives at the first position."""
    found: dict[str, torch.Tensor] = {}
    hooks = []
    for (kind, layer), block in attention_blocks(model).items():
        if layer == 0:

            def note(module: Any, args: Any, output: Any, kind: str = kind) -> None:
                found[kind] = (output[0] if isinstance(output, tuple) else output)[:, 0].clone()

            hooks.append(block.register_forward_hook(note))
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return found


@every_family
def test_causality_is_that_of_a_forward_pass(family: Family) -> None:
    """An encoder taken for causal would be calibrated on cut texts, without special tokens."""
    model = tiny_models.build(family.model_type, family.architecture)
    inputs = tiny_models.inputs(model)
    before = first_outputs(model, inputs)
    after = first_outputs(model, changed_at_the_end(inputs))
    for attention in family.attention:
        change = (after[attention.kind] - before[attention.kind]).abs().max()
        assert change == 0 if attention.is_causal else change > 1e-4, attention.kind


@pytest.mark.parametrize("family", TEXT, ids=lambda family: family.model_type)
def test_a_later_token_changes_earlier_logits_of_encoders_alone(family: Family) -> None:
    """The same of the model as a whole, and of what is asked before texts are cut."""
    model = tiny_models.build(family.model_type, family.architecture)
    inputs = tiny_models.inputs(model)
    if "decoder_input_ids" in inputs:
        pytest.skip("an encoder-decoder is given sources and targets; its blocks are compared one by one")
    changed = changed_at_the_end(inputs)
    with torch.inference_mode():
        difference = (model(**changed).logits[:, :-1] - model(**inputs).logits[:, :-1]).abs().max()
    assert family.is_encoder == bool(difference > 1e-4) == (not is_causal(model))


@pytest.mark.parametrize("family", [f for f in TEXT if f.is_encoder], ids=lambda family: family.model_type)
def test_an_encoder_made_a_decoder_is_causal(family: Family) -> None:
    """Configurations may turn one into the other; both cases were confused where a list was kept."""
    task = family.auto_classes.get("AutoModelForCausalLM")
    if task is None:
        pytest.skip("transformers has no such class")
    model = tiny_models.build(family.model_type, task[0], is_decoder=True)
    inputs = tiny_models.inputs(model)
    with torch.inference_mode():
        logits = [model(**given).logits[:, 0] for given in (inputs, changed_at_the_end(inputs))]
    assert torch.equal(*logits)
    assert is_causal(model)


def test_a_configuration_can_make_a_decoder_look_both_ways() -> None:
    """Transformers reads these keys; texts must not be cut then."""
    assert not is_causal(tiny_models.build("llama", "LlamaForCausalLM", is_causal=False))
    assert not is_causal(tiny_models.build("gemma", "GemmaForCausalLM", use_bidirectional_attention=True))


def test_the_encoder_of_an_encoder_decoder_is_not_causal() -> None:
    """Its decoder is, which the class does not store."""
    assert not is_causal(tiny_models.build("t5", "T5EncoderModel"))
    assert is_causal(tiny_models.build("bart", "BartForCausalLM"))


def test_a_model_without_a_record_is_refused() -> None:
    """Causal models in transformers' lists are encoders too; nothing is assumed of an unknown family."""
    config = transformers.MegatronBertConfig(
        vocab_size=37, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    with pytest.raises(FamilyError, match="MegatronBertForMaskedLM: no family table for model_type"):
        is_causal(transformers.MegatronBertForMaskedLM(config))


@pytest.mark.parametrize("family", LEARNED, ids=lambda family: family.model_type)
def test_texts_of_the_stated_length_are_read_and_longer_ones_are_not(family: Family) -> None:
    """A table of positions may begin at another row than 0, which a longest text must leave room for."""
    model = tiny_models.build(family.model_type, family.architecture)
    length = text_positions(model.config)
    assert length is not None
    tokens = torch.full((1, length + 1), 5)
    decoder = {"decoder_input_ids": tokens[:, :2]} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        model(input_ids=tokens[:, :-1], **decoder)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=tokens, **decoder)
