"""Grouped models compute what the stock model with the same heads copied out computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from choices import pairs
from grouped_pairs import VARIANTS, layout, load_pair, plan_of, write_expanded, write_pair

from gqkva_convert.architectures import FAMILIES
from gqkva_convert.modeling.loading import load_model, main_output
from gqkva_convert.source.model import open_model

Tiny = Callable[[str], Path]
CAUSAL = [name for name, family in FAMILIES.items() if "CausalLM" in family.architecture] + ["gpt2"]
SEQ2SEQ = ["t5", "bart", "whisper"]


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("family", "variant"),
    pairs(
        FAMILIES,
        always=("unequal", "GQKVA"),
        dealt=[name for name in VARIANTS if name not in ("unequal", "GQKVA")],
    ),
)
def test_a_grouped_model_computes_what_its_expanded_stock_model_does(
    family: str, variant: str, tiny: Tiny, tmp_path: Path
) -> None:
    """A wrong map, view or packing anywhere shows here, in both implementations; MHA in training, too.

    The default run: every family with groups of unequal sizes, with shared queries and with another
    variant, and every variant in each kind of code path. The slow run: every family with every variant.
    """
    grouped, stock = load_pair(tiny(family), variant, tmp_path)
    for implementation in ("eager", "sdpa"):
        for model in (grouped, stock):
            model.set_attn_implementation(implementation)
        expected = tiny_models.outputs(stock)
        found = tiny_models.outputs(grouped)
        if variant == "MHA":
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
            in_training = []
            for model in (grouped, stock):
                model.train()
                torch.manual_seed(0)  # of dropout
                with torch.no_grad():
                    in_training.append(main_output(model(**tiny_models.inputs(model))))
                model.eval()
            torch.testing.assert_close(*in_training, rtol=0, atol=0)
        assert_same(found, expected)


@pytest.mark.parametrize(("family", "variant"), pairs(FAMILIES, dealt=("GQKVA", "unequal")))
def test_training_gives_the_gradients_of_the_expanded_model(
    family: str, variant: str, tiny: Tiny, tmp_path: Path
) -> None:
    """In every weight, bias and norm: along a random direction, and along its image, the loss grows as much.

    Dropout is off so that both draw nothing. The default run: every family with one variant, both variants
    in each kind of code path.
    """
    pair = load_pair(tiny(family), variant, tmp_path)
    direction = copy.deepcopy(pair[0])
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in direction.parameters():
            parameter.normal_()
    direction.save_pretrained(tmp_path / "direction")
    source = open_model(tiny(family))
    write_expanded(tmp_path / "direction", plan_of(source, variant), tmp_path / "image")
    directions = (direction, load_model(tmp_path / "image", source.family.architecture))
    growths = []
    for model, along in zip(pair, directions, strict=True):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            for name in ("dropout", "attention_dropout", "dropout_rate"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        model.train()
        model.gradient_checkpointing_enable()
        output = model(**tiny_models.inputs(model))
        first = next(output[key] for key in ("logits", "logits_per_text") if key in output)
        first.float().square().mean().backward()
        steps = dict(along.named_parameters())
        growths.append(
            torch.stack(
                [
                    (parameter.grad.double() * steps[name].detach().double()).sum()
                    for name, parameter in model.named_parameters()
                    if parameter.grad is not None
                ]
            )
        )
    grouped, stock = growths
    assert float(stock.abs().max()) > 0
    scale = float(stock.norm())
    assert float(grouped.sum()) == pytest.approx(float(stock.sum()), abs=1e-4 * scale)


@pytest.mark.parametrize(
    ("family", "variant"), pairs(CAUSAL, always=("GQKVA",), dealt=("MQA", "GQA", "unequal", "MKVA", "mixed"))
)
def test_generation_with_a_cache_says_what_the_expanded_model_says(
    family: str, variant: str, tiny: Tiny, tmp_path: Path
) -> None:
    """Left padding, growing and static caches, greedy and beam search; a cache keeps stored heads only.

    The default run: every family with shared queries and with another variant, every variant in each kind
    of code path.
    """
    grouped, stock = load_pair(tiny(family), variant, tmp_path)
    tokens = tiny_models.inputs(stock)["input_ids"]
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    for options in ({}, {"num_beams": 3}, {"cache_implementation": "static"}):
        texts = [
            model.generate(
                input_ids=tokens,
                attention_mask=mask,
                max_new_tokens=5,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
                output_scores=True,
                return_dict_in_generate=True,
                disable_compile=True,
                **options,
            )
            for model in (grouped, stock)
        ]
        assert texts[0].sequences.tolist() == texts[1].sequences.tolist()
    with torch.inference_mode():
        cache = grouped(tokens, use_cache=True).past_key_values
    for number, layer in enumerate(cache.layers):
        expected = layout(variant, tiny_models.HEADS, layer.keys.shape[-1], number)
        assert layer.keys.shape[1] == expected.num_key_heads
        assert layer.values.shape[1] == expected.num_value_heads


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        pytest.param(
            family,
            variant,
            marks=() if family in ("llama", "bert", "t5") and variant == "unequal" else pytest.mark.slow,
        )
        for family in FAMILIES
        if family not in ("vit", "deit", "dinov2")
        for variant in ("unequal", "GQKVA", "GKVA", "apart")
    ],
)
def test_padding_on_either_side_changes_nothing(
    family: str, variant: str, tiny: Tiny, tmp_path: Path
) -> None:
    """Masks reach grouped heads in other shapes: by slot, in the place of positions, for one position."""
    pair = load_pair(tiny(family), variant, tmp_path)
    inputs = tiny_models.inputs(pair[1])
    name = "input_ids" if "input_ids" in inputs else "decoder_input_ids"
    mask = torch.ones_like(inputs[name])
    mask[0, :2] = mask[1, -2:] = 0
    mask_name = name.replace("input_ids", "attention_mask")
    for implementation in ("eager", "sdpa"):
        logits = []
        for model in pair:
            model.set_attn_implementation(implementation)
            with torch.inference_mode():
                logits.append(main_output(model(**inputs, **{mask_name: mask})))
        if logits[0].shape[:2] == mask.shape:  # what padding itself says means nothing
            logits = [found[mask.bool()] for found in logits]
        assert_same(*logits)


@pytest.mark.parametrize("family", SEQ2SEQ)
@pytest.mark.parametrize("variant", ["MQA", "unequal", "GQKVA"])
def test_encoder_decoder_generation_reuses_cross_attention(
    family: str, variant: str, tiny: Tiny, tmp_path: Path
) -> None:
    """Cross-attention keys are computed once and kept; both kinds of block are grouped here."""
    source = tiny(family)
    if family == "t5":  # transformers sizes the cache by the encoder's layers
        model = tiny_models.build("t5", FAMILIES["t5"].architecture, num_decoder_layers=2)
        source = tiny_models.save(model, tmp_path / "t5")
    grouped, stock = load_pair(source, variant, tmp_path)
    inputs = {key: value for key, value in tiny_models.inputs(stock).items() if "decoder" not in key}
    for beams in (1, 3):
        texts = [
            model.generate(
                **inputs, max_new_tokens=5, num_beams=beams, do_sample=False, decoder_start_token_id=1
            ).tolist()
            for model in (grouped, stock)
        ]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "bert", "vit", "t5", "phi3"])
@pytest.mark.parametrize("variant", ["GQKVA", "mixed"])
def test_saving_and_loading_keeps_the_model(family: str, variant: str, tiny: Tiny, tmp_path: Path) -> None:
    """`save_pretrained` must write what any other loader of the folder needs."""
    grouped, _ = load_pair(tiny(family), variant, tmp_path)
    grouped.save_pretrained(tmp_path / "saved")
    name = type(grouped).__name__
    auto = next(a for a, names in grouped.family.auto_classes.items() if name.removeprefix("Gqkva") in names)
    for folder in (tmp_path / "grouped", tmp_path / "saved"):
        loaded = getattr(transformers, auto).from_pretrained(folder).eval()
        assert type(loaded) is type(grouped)
        assert loaded.config.attention_layouts == grouped.config.attention_layouts
        torch.testing.assert_close(tiny_models.outputs(loaded), tiny_models.outputs(grouped), rtol=0, atol=0)
    base = transformers.AutoModel.from_pretrained(tmp_path / "saved")
    assert any(hasattr(module, "head_maps") for module in base.modules())


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("llama", "unequal"),
        pytest.param("llama", "GQKVA", marks=pytest.mark.slow),
        pytest.param("gpt2", "mixed", marks=pytest.mark.slow),
        pytest.param("bert", "GQKVA", marks=pytest.mark.slow),
        pytest.param("t5", "unequal", marks=pytest.mark.slow),
    ],
)
def test_compiled_models_say_the_same(family: str, variant: str, tiny: Tiny, tmp_path: Path) -> None:
    """One graph without breaks, with sizes that change."""
    torch.compiler.reset()
    grouped, _ = load_pair(tiny(family), variant, tmp_path)
    compiled = torch.compile(grouped, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (9, 7):
        inputs = tiny_models.inputs(grouped, length)
        with torch.inference_mode():
            expected, found = (model(**inputs, use_cache=False) for model in (grouped, compiled))
        assert_same(found.logits, expected.logits)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "variant"), [("llama", "unequal"), ("llama", "GQKVA"), ("gpt2", "mixed")])
def test_compiled_decoding_with_a_static_cache_says_the_same(
    family: str, variant: str, tiny: Tiny, tmp_path: Path
) -> None:
    """Without breaks, as `generate` compiles it on a GPU."""
    torch.compiler.reset()
    grouped, stock = load_pair(tiny(family), variant, tmp_path)
    tokens = tiny_models.inputs(grouped)["input_ids"]
    length = tokens.shape[1]
    compiled = torch.compile(grouped.forward, fullgraph=True, backend="aot_eager")
    steps: list[list[torch.Tensor]] = []
    for forward, model in ((compiled, grouped), (stock.forward, stock)):
        cache = transformers.StaticCache(config=model.config, max_cache_len=length + 3)
        mask = torch.ones(len(tokens), length + 3, dtype=torch.long)
        with torch.inference_mode():
            options = {"past_key_values": cache, "use_cache": True}
            found = [model(tokens, attention_mask=mask[:, :length], **options).logits[:, -1]]
            for place in range(length, length + 3):
                word = torch.full((len(tokens), 1), place % 7)
                where = torch.tensor([[place]]).expand(len(tokens), 1)
                seen = mask[:, : place + 1]
                found.append(forward(word, attention_mask=seen, position_ids=where, **options).logits[:, -1])
        steps.append(found)
    for found, expected in zip(*steps, strict=True):
        assert_same(found, expected)


def test_a_block_the_layouts_do_not_name_stays_stock(tiny: Tiny, tmp_path: Path) -> None:
    """`--blocks decoder` leaves T5's encoder as it was."""
    from gqkva_convert import convert
    from gqkva_convert.modeling.loading import load_model

    out = convert(tiny("t5"), tmp_path / "out", gkv=2, blocks="decoder")
    model = load_model(out, "")
    counts = {
        name: module.head_maps.layout.name
        for name, module in model.named_modules()
        if hasattr(module, "head_maps")
    }
    assert {value for name, value in counts.items() if name.startswith("decoder")} == {"GQA-2"}
    assert {value for name, value in counts.items() if name.startswith("encoder")} == {"MHA"}


def test_new_models_are_initialised_as_stock_ones(tiny: Tiny, tmp_path: Path) -> None:
    """T5 draws queries with a smaller spread than keys; new projections must follow."""
    from gqkva_convert.modeling.classes import GqkvaT5Config, GqkvaT5ForConditionalGeneration

    entry = {
        "layers": [0, 1],
        "query": [0, 0, 1, 1],
        "key": [0, 1, 0, 1],
        "value": [0, 1, 0, 1],
        "head_dim": 64,
    }
    config = GqkvaT5Config(
        vocab_size=40, d_model=64, d_kv=64, num_layers=2, num_heads=4, attention_layouts={"encoder": [entry]}
    )
    torch.manual_seed(0)
    model = GqkvaT5ForConditionalGeneration(config)
    block = model.encoder.block[0].layer[0].SelfAttention
    assert block.q.weight.shape == (128, 64)
    assert block.q.weight.std().item() == pytest.approx((64 * 64) ** -0.5, rel=0.05)
    assert block.k.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)


def test_the_grouped_classes_are_those_of_the_auto_classes() -> None:
    """The table of classes is written down; transformers' own tables say what it should hold."""
    from gqkva_convert.modeling.families import GROUPED_FAMILIES

    assert GROUPED_FAMILIES.keys() == FAMILIES.keys()
    for family in GROUPED_FAMILIES.values():
        for auto, names in family.auto_classes.items():
            known: Any = getattr(transformers, auto)._model_mapping._model_mapping[family.model_type]
            assert names == ((known,) if isinstance(known, str) else known)


def test_every_family_and_variant_writes_and_reopens(tiny: Tiny, tmp_path: Path) -> None:
    """`inspect` and further work read grouped folders too."""
    from gqkva_convert import inspect

    grouped, _ = write_pair(tiny("bert"), "GQKVA", tmp_path)
    assert inspect(grouped)["attention"][0]["variant"] == "GQKVA-2.3"
