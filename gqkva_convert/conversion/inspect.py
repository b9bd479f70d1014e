"""`gqkva inspect`: a model's attention, and the result of each possible conversion, from headers alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.dtypes import FLOATS
from gqkva_convert.checkpoint.folder import open_checkpoint
from gqkva_convert.checkpoint.hub import is_hub_id, locate, open_remote
from gqkva_convert.checkpoint.sidecars import REPORT
from gqkva_convert.errors import LayoutError
from gqkva_convert.heads import Variant, divisors
from gqkva_convert.plans.plan import make_plan
from gqkva_convert.records.report import read_report
from gqkva_convert.source.caches import cache_bytes
from gqkva_convert.source.deci import DECI, is_deci
from gqkva_convert.source.model import SourceModel, active_norms, attention_config, read_model
from gqkva_convert.source.rotary import rotary_fraction
from gqkva_convert.source.tensors import (
    count_parameters,
    source_buffers,
    source_parameters,
    source_weights,
)
from gqkva_convert.steps.make import make_steps

# Display only: which part of a model a tensor outside attention belongs to. First match wins.
_PARTS = (
    ("embeddings", re.compile(r"embed|wte|wpe|shared|cls_token|class_embedding|\bprobe")),
    (
        "output head",
        re.compile(
            r"lm_head|score|classifier|^cls\.|qa_outputs|vocab_|logit|proj_out|_projection|pooler|embed_out"
        ),
    ),
    ("norms", re.compile(r"norm|\.ln_|layernorm", re.IGNORECASE)),
    ("feed-forward and other", re.compile("")),
)


def inspect(model: str | Path, revision: str | None = None) -> dict[str, Any]:
    """Describe a model and what each possible ``--gkv`` and ``--gq`` would give.

    Reads ``config.json`` and the headers of the weight files, never the weights; a Hub id is not
    downloaded.

    Args:
        model: Checkpoint folder or Hub id.
        revision: Branch, tag or commit of a Hub id.

    Returns:
        JSON data: whether the table is generated, heads by kind of attention, parameters by part and
        dtype (a tied weight once), buffers (which are no parameters), bytes, KV-cache bytes per token,
        options.

    Raises:
        GqkvaError: With a message for the user.
    """
    if is_hub_id(str(model)):
        source = read_model(open_remote(str(model), revision))
    else:
        source = read_model(open_checkpoint(locate(str(model), revision).folder))
    return {
        "model": str(model),
        "model_type": DECI if is_deci(source.config) else source.family.model_type,
        "architecture": source.classes[0] if len(source.classes) == 1 else None,
        "named_architecture": next(iter(source.config.get("architectures") or ()), None),
        "table": "generated" if source.family.is_derived else "written by hand",
        "converted": _converted_by(Path(model)),
        "expressible_in_stock_transformers": source.family.is_native,
        "attention": [
            entry for attention in source.family.attention for entry in _describe_kind(source, attention.kind)
        ],
        "parameters": _parameters_by_part(source),
        "dtypes": _dtypes(source),
        "buffers": {
            "tensors": len(source_buffers(source)),
            "bytes": sum(tensor.nbytes for tensor in source_buffers(source)),
        },
        "bytes": source.checkpoint.nbytes,
        "kv_cache_bytes_per_token": cache_bytes(source, [block.layout for block in source.blocks], "self"),
        "cross_cache_bytes_per_source_token": cache_bytes(
            source, [block.layout for block in source.blocks], "cross"
        ),
        "options": _options(source),
    }


def _describe_kind(model: SourceModel, kind: str) -> list[dict[str, Any]]:
    """Describe each layout that layers of a kind have."""
    blocks = [block for block in model.blocks if block.attention.kind == kind]
    facts = blocks[0].attention
    positions = "none or learned"
    if facts.rotary is not None:
        fraction = rotary_fraction(attention_config(model.config, facts), facts.rotary.fraction)
        positions = f"rotary ({facts.rotary.style}, {fraction:.0%})"
    elif facts.head_bias is not None:
        positions = "bias per head"
    return [
        {
            "kind": kind,
            "layers": layers,
            "variant": layout.name,
            "num_attention_heads": layout.num_attention_heads,
            "num_key_value_heads": layout.num_key_heads,
            "head_dim": layout.head_dim,
            "positions": positions,
            "query_key_norm": facts.norms[0].span if active_norms(model.config, facts) else None,
        }
        for layout, layers in Counter(block.layout for block in blocks).items()
    ]


def _parameters_by_part(model: SourceModel) -> dict[str, int]:
    modules = {
        block.tensor_name(projection.name) + "."
        for block in model.blocks
        for projection in block.attention.projections
    }
    parts = {"attention": 0, **{name: 0 for name, _ in _PARTS}}
    for tensor in source_weights(model):
        name = tensor.name
        inside = f"{name.rpartition('.')[0]}." in modules
        part = "attention" if inside else next(part for part, pattern in _PARTS if pattern.search(name))
        parts[part] += math.prod(tensor.shape)
    return {"total": sum(parts.values()), **parts}


def _dtypes(model: SourceModel) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for tensor in source_weights(model):
        counts[FLOATS.get(tensor.dtype, tensor.dtype)] += math.prod(tensor.shape)
    return dict(counts)


def _variants(model: SourceModel) -> list[Variant]:
    """Return every variant that fits all attention blocks, except the source's own."""
    layouts = {block.layout for block in model.blocks}
    heads = math.gcd(*(layout.num_attention_heads for layout in layouts))
    stored = math.gcd(*(layout.num_key_heads for layout in layouts))
    candidates = [Variant(None, gkv) for gkv in reversed(divisors(stored))]
    candidates += [Variant(gq, None) for gq in reversed(divisors(heads))]
    candidates += [Variant(gq, heads // gq) for gq in divisors(heads)[1:-1]]
    fitting = []
    for variant in candidates:
        try:
            targets = {layout: variant.layout(layout) for layout in layouts}
        except LayoutError:
            continue
        if any(target != layout for layout, target in targets.items()):
            fitting.append(variant)
    return fitting


def _options(model: SourceModel) -> list[dict[str, Any]]:
    """Return the result of each variant; a generated table allows those that are stock checkpoints."""
    options = [_describe_option(model, variant) for variant in _variants(model)]
    return [option for option in options if option["is_stock"] or not model.family.is_derived]


def _describe_option(model: SourceModel, variant: Variant) -> dict[str, Any]:
    plan = make_plan(model, variant)
    parameters = count_parameters(model, ((step.name, step.shape) for step in make_steps(model, plan).steps))
    before = source_parameters(model)
    targets = [block.target for block in plan.blocks]
    cache = cache_bytes(model, targets, "self") + cache_bytes(model, targets, "cross")
    sources = [block.layout for block in model.blocks]
    cache_before = cache_bytes(model, sources, "self") + cache_bytes(model, sources, "cross")
    return {
        "gq": variant.gq,
        "gkv": variant.gkv,
        "variant": plan.blocks[0].target.name,
        "parameters": parameters,
        "parameters_percent": round(100 * parameters / before, 2),
        "kv_cache_bytes_per_token": cache,
        "kv_cache_percent": round(100 * cache / cache_before, 2) if cache_before else None,
        "is_stock": plan.is_native(model.family),
    }


def _converted_by(folder: Path) -> dict[str, Any] | None:
    if not (folder / REPORT).is_file():
        return None
    report = read_report(folder)
    return {
        **{name: report.plan.get(name) for name in ("variant", "merge", "grouping")},
        "source": report.source.name,
        "verified": report.is_verified,
    }
