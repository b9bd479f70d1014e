"""Markdown about a converted folder: what was done, measured and recorded, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from gqkva_convert.architectures import FAMILIES
from gqkva_convert.checkpoint.sidecars import BENCH_PICTURE
from gqkva_convert.data.names import short_name
from gqkva_convert.description.commands import making_commands
from gqkva_convert.description.facts import Facts
from gqkva_convert.description.licences import notices
from gqkva_convert.description.plots import QUALITY
from gqkva_convert.heads import HeadLayout
from gqkva_convert.plans.plan import BlockPlan
from gqkva_convert.records.bench import Bench, Row
from gqkva_convert.records.evaluation import Result, Score
from gqkva_convert.runtimes.gguf.families import RUNTIME_FAMILIES

CITATIONS = """```bibtex
@misc{javadi2023gqkva,
  title={GQKVA: Efficient Pre-training of Transformers by Grouping Queries, Keys, and Values},
  author={Farnoosh Javadi and others}, year={2023}, eprint={2311.03426}, archivePrefix={arXiv}
}
@misc{ainslie2023gqa,
  title={GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints},
  author={Joshua Ainslie and others}, year={2023}, eprint={2305.13245}, archivePrefix={arXiv}
}
@misc{chen2024asymgqa,
  title={Optimised Grouped-Query Attention Mechanism for Transformers},
  author={Yuang Chen and others}, year={2024}, eprint={2406.14963}, archivePrefix={arXiv}
}
```"""
_REPOSITORY = "https://pypi.org/project/gqkva-convert"


def folder_text(facts: Facts, plots: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the text of a card or page about a folder, as Markdown.

    Args:
        facts: The folder's facts.
        plots: Captions of plot files, shown after the section about heads.
    """
    parts = [
        _head(facts),
        _heads(facts),
        *(f"![{shown}]({file})" for file, shown in plots.items()),
        _quality(facts),
        _speed(facts),
        _loading(facts),
        _training(facts),
        _making(facts),
        _limitations(facts),
        f"## Citations\n\n{CITATIONS}",
    ]
    return "\n\n".join(part for part in parts if part)


def _head(facts: Facts) -> str:
    base, revision = facts.base()
    made_from = short_name(facts.source.name or "a checkpoint")
    if base is not None:
        made_from = f"[{base}](https://huggingface.co/{base}) at commit `{str(revision)[:12]}`"
    variants = " and ".join(dict.fromkeys(block.target.name for block in facts.plan.blocks))
    how = "its attention heads merged into fewer stored heads"
    if all(block.target.name == "MHA" for block in facts.plan.blocks):
        how = "its attention heads written as a stock architecture holds them"
    elif facts.plan.variant in ("stock", "deci"):
        how = "its attention rewritten for a stock architecture"
    lines = [
        f"# {_cell(facts.name)}",
        f"Made from {_cell(made_from) if base is None else made_from}: {how} ({variants}), by "
        f"[gqkva]({_REPOSITORY}) {_cell(facts.report.versions.get('gqkva-convert', '?'))}.",
    ]
    lines += [f"**{notice}**" for notice in notices(facts.licence)]
    if not facts.report.is_verified:
        lines.append("**Not verified**: `gqkva verify` has not proven that these files are what they say.")
    return "\n\n".join(lines)


def _heads(facts: Facts) -> str:
    rows = []
    for first, last, block in _runs(facts.plan.blocks):
        layers = str(first) if first == last else f"{first}-{last}"
        rows.append((block.kind, layers, _layout(block.source), _layout(block.target)))
    parts = ["## Heads and size", _table(("attention", "layers", "before", "after"), rows)]
    table = [
        (what, f"{before:,}", f"{after:,}", f"{after / before:.1%}") for what, before, after in facts.sizes()
    ]
    parts.append(_table(("", "before", "after", "after / before"), table))
    return "\n\n".join(parts)


def _quality(facts: Facts) -> str:
    if not facts.evaluation.results:
        return "## Quality\n\nNot measured."
    rows = [
        (
            result.task,
            short_name(result.data) + (f", {result.split}" if result.split else ""),
            f"{result.samples:,} {result.unit or ''}".strip() if result.samples is not None else "-",
            metric.metric + (f" ({metric.better} is better)" if metric.better else ""),
            _with_interval(metric.value, metric.interval),
            _with_interval(metric.against, metric.against_interval),
            _with_interval(_difference(metric), metric.difference_interval),
        )
        for result in facts.evaluation.results
        for metric in result.metrics
    ]
    beside = facts.other_of(QUALITY)
    heading = ("task", "data", "samples", "metric", "this model", beside, "difference")
    lines = ["## Quality", _table(heading, rows)]
    lines += dict.fromkeys(_settings(result) for result in facts.evaluation.results)
    lines += dict.fromkeys(_measured_with(result) for result in facts.evaluation.results)
    return "\n\n".join(line for line in lines if line)


def _speed(facts: Facts) -> str:
    if facts.bench is None or not facts.bench.rows:
        return ""
    rows = sorted(facts.bench.rows, key=lambda row: (row.context, row.batch, row.model))
    heading = (
        "context",
        "batch",
        "model",
        "prefill tokens/s",
        "first token, s",
        "decode tokens/s",
        "KV cache, MB",
        "peak memory, MB",
    )
    where = f"{facts.bench.device}, {facts.bench.dtype}"
    return "\n\n".join(
        part
        for part in (
            "## Speed",
            _table(heading, [_speed_row(row, facts.other_of(BENCH_PICTURE)) for row in rows]),
            f"Measured on {_cell(where)}" + _measured_with(facts.bench, ", ") + ".",
            _bench_settings(facts.bench),
        )
    )


def _loading(facts: Facts) -> str:
    model_type = facts.plan.architecture or facts.model.family.model_type
    auto, lines = facts.auto_class(), []
    if auto is not None and facts.is_grouped:
        lines.append(
            "No stock architecture holds these heads; the folder carries its own modelling file.\n\n"
            f"```python\nfrom transformers import {auto}\n\n"
            f'model = {auto}.from_pretrained("{facts.address}", trust_remote_code=True)\n```\n\n'
            "Without remote code, after `pip install gqkva-convert`:\n\n"
            f"```python\nimport gqkva_convert\nfrom transformers import {auto}\n\n"
            f'model = {auto}.from_pretrained("{facts.address}")\n```\n\n'
            "`gqkva export` writes a stock checkpoint of it that computes the same."
        )
    elif auto is not None:
        lines.append(
            f"A stock `{model_type}` model:\n\n```python\nfrom transformers import {auto}\n\n"
            f'model = {auto}.from_pretrained("{facts.address}")\n```'
        )
    names = ("tokenizer.json", "tokenizer.model")
    has_tokenizer = not facts.is_grouped and any((facts.folder / name).is_file() for name in names)
    if has_tokenizer and model_type in RUNTIME_FAMILIES:
        lines.append(
            f"`gqkva export --runtime gguf` writes `{model_type}` models as a file for llama.cpp, whose "
            "logits gqkva compares with those of transformers (`tests/runtimes/test_llama_cpp.py` in its "
            "sources)."
        )
    runtimes = FAMILIES[model_type].compared_in if model_type in FAMILIES else ()
    if runtimes and not facts.is_grouped:
        named = f"{', '.join(runtimes[:-1])} and {runtimes[-1]}"
        lines.append(
            f"gqkva runs stock `{model_type}` models in {named}, too, and compares "
            "their logits (`tests/conversion/test_runtimes.py`)."
        )
    return "\n\n".join(["## Loading", *lines]) if lines else ""


def _training(facts: Facts) -> str:
    training = facts.training
    if training is None:
        return ""
    settings = training.settings
    told: list[tuple[str, Any]] = [
        ("task", training.task),
        ("data", short_name(str(settings["data"])) if settings.get("data") else None),
        ("teacher", short_name(str(settings["teacher"])) if settings.get("teacher") else None),
        ("trained weights", settings.get("train")),
        ("steps", training.steps),
        ("of them matching attention blocks", training.matching_steps),
        ("tokens", training.tokens),
        ("learning rate", training.learning_rate),
        ("processes", training.processes),
        ("divided by", training.distributed_type),
        ("precision", training.mixed_precision),
        ("seed", settings.get("seed")),
        ("held-out loss before", training.held_out_loss_before),
        ("held-out loss after", training.held_out_loss),
        ("held-out loss of the teacher", training.teacher_held_out_loss),
        ("date", training.date),
    ]
    rows = [(what, _value(value)) for what, value in told if value is not None]
    return f"## Training after the conversion\n\n{_table(('', ''), rows)}"


def _making(facts: Facts) -> str:
    plan, data = facts.plan, facts.plan.calibration
    rows: list[tuple[str, str]] = [
        ("variant", plan.variant),
        ("grouping", plan.grouping),
        ("merge", plan.merge),
        ("refinement", ", ".join(plan.refine) or "none"),
    ]
    if data is not None:
        size = f", {data.length} tokens each" if data.length else ""
        rows.append(
            ("calibration", f"{short_name(data.data)}: {data.samples} samples{size}, seed {data.seed}")
        )
    rows.append(("seed", str(plan.seed)))
    if plan.dtype:
        rows.append(("dtype", plan.dtype))
    rows.append(("versions", ", ".join(f"{name} {value}" for name, value in facts.report.versions.items())))
    lines = ["## How it was made"]
    commands = making_commands(facts)
    if commands:
        lines.append("```\n" + "\n".join(commands).replace("```", "") + "\n```")
    if any("--plan" in command.split() for command in commands):
        lines.append("The plan is what `gqkva_report.json` holds under `plan`.")
    lines.append(_table(("", ""), rows))
    proof = facts.report.verification
    if proof is not None and proof.passed:
        lines.append(
            f"`gqkva verify` passed {len(proof.checks)} checks on {_cell(proof.date)}"
            + (f", against {_cell(short_name(proof.against))}" if proof.against else "")
            + "; what each found is in `gqkva_report.json`."
        )
        lines.append(_table(("file", "SHA-256"), [(n, f"`{value}`") for n, value in proof.sha256.items()]))
    return "\n\n".join(line for line in lines if line)


def _limitations(facts: Facts) -> str:
    lines = ["Whatever holds for the original holds here: its uses, its biases, its licence."]
    if facts.plan.variant not in ("stock", "deci"):
        lines.append("Merging changes what a model computes wherever the merged heads were not alike.")
    if not facts.evaluation.results:
        lines.append("Its quality was not measured; measure it on your task before you use it.")
    else:
        lines.append("Its quality is known on the data above only.")
    if facts.is_grouped:
        lines.append("Runtimes other than transformers do not know this architecture.")
    return "## Limitations\n\n" + "\n".join(f"- {line}" for line in lines)


def _runs(blocks: Sequence[BlockPlan]) -> list[tuple[int, int, BlockPlan]]:
    """Group neighbouring layers of a kind with the same layouts: first layer, last layer, and their plan."""
    runs: list[tuple[int, int, BlockPlan]] = []
    for block in sorted(blocks, key=lambda block: block.place):
        if runs:
            first, last, other = runs[-1]
            same = (other.kind, other.source, other.target) == (block.kind, block.source, block.target)
            if same and last + 1 == block.layer:
                runs[-1] = first, block.layer, other
                continue
        runs.append((block.layer, block.layer, block))
    return runs


def _layout(layout: HeadLayout) -> str:
    stored = [f"{layout.num_query_heads} query"]
    if layout.num_key_heads == layout.num_value_heads:
        stored.append(f"{layout.num_key_heads} key/value")
    else:
        stored += [f"{layout.num_key_heads} key", f"{layout.num_value_heads} value"]
    return f"{layout.name}: {', '.join(stored)} heads of {layout.head_dim}"


def _difference(score: Score) -> float | None:
    if score.difference is None and score.against is not None:
        return score.value - score.against
    return score.difference


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    return _value(value) + (f" ({_value(interval[0])} to {_value(interval[1])})" if interval else "")


def _value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) < 1e3 else f"{value:,.0f}"


def _measured_with(found: Result | Bench, before: str = "Measured on ") -> str:
    parts = [found.machine, found.date]
    parts += [f"{name} {version}" for name, version in (found.versions or {}).items()]
    stated = ", ".join(_cell(part) for part in parts if part)
    return (before + stated + ("." if before.startswith("M") else "")) if stated else ""


def _settings(result: Result) -> str:
    """Describe the settings recorded for a result."""
    return _stated(short_name(result.data), result.settings or {})


def _bench_settings(bench: Bench) -> str:
    """Describe the settings recorded for a speed measurement."""
    names = ("attn_implementation", "cache", "new_tokens", "rounds", "threads", "peak_memory")
    return _stated("Speed", {name: bench.settings.get(name) for name in names})


def _stated(subject: str, settings: Mapping[str, Any]) -> str:
    chosen = {name: value for name, value in settings.items() if value is not None}
    said = ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in chosen.items())
    return f"{_cell(subject)}: {_cell(said)}." if said else ""


def _speed_row(row: Row, other: str) -> tuple[str, ...]:
    sizes = [None if size is None else size / 1e6 for size in (row.kv_cache_bytes, row.peak_memory_bytes)]
    numbers = (
        row.prefill_tokens_per_second,
        row.time_to_first_token_seconds,
        row.decode_tokens_per_second,
        *sizes,
    )
    shown = ("-" if number is None else _value(float(number)) for number in numbers)
    name = "this model" if row.model == "converted" else other
    return (f"{row.context:,}", str(row.batch), name, *shown)


def _table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [heading, ("---",) * len(heading), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: Any) -> str:
    """Escape text so that it neither leaves its table cell nor becomes markup."""
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|").replace("<", "&lt;").strip()
