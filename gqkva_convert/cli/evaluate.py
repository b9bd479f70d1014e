"""`gqkva evaluate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gqkva_convert.cli.options import DATA_KINDS, Json, Model
from gqkva_convert.cli.output import make_table, print_json, print_table, stage_progress
from gqkva_convert.data.names import short_name


def evaluate_command(
    model: Model,
    against: Annotated[
        str | None,
        typer.Option(help="The model it was made from: a folder or Hub id.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help=f"Data to measure on: {DATA_KINDS}.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Part of the data; by default test, or validation.", show_default=False),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks of lm-evaluation-harness, with commas: names, or YAML files.", show_default=False
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(help="Examples before each question; by default the task's.", show_default=False),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Most windows, texts, pairs, images or questions; by default all.",
            show_default=False,
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            help="Tokens read at once; by default 2048, or as many as the model reads.", show_default=False
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens predicted by each window; by default --length.", show_default=False),
    ] = None,
    documents: Annotated[
        str | None,
        typer.Option(
            help="records: each is a text; joined: all are one; by default joined for wikitext and txt.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Windows, texts, pairs or images in one forward pass; by default about 8192 tokens, or 32.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Longest text that a sequence-to-sequence model writes.")
    ] = 128,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn, and of intervals.")] = 0,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="auto (as stored), float32, bfloat16 or float16; by default float32 on a CPU, auto on "
            "a GPU.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or one GPU such as cuda:1.")] = "auto",
    save: Annotated[
        bool, typer.Option(help="Keep the results in gqkva_evaluation.json in MODEL's folder.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Measure how well a model answers, alone or against the one it was made from."""
    from gqkva_convert.evaluation.evaluate import evaluate
    from gqkva_convert.evaluation.settings import EvaluationSettings

    settings = EvaluationSettings(
        data=data,
        split=split,
        tasks=tuple(name.strip() for name in (tasks or "").split(",") if name.strip()),
        samples=samples,
        length=length,
        stride=stride,
        documents=documents,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        num_fewshot=num_fewshot,
        seed=seed,
        dtype=dtype,
        device=device,
    )
    with stage_progress() as stages:
        results = evaluate(model, settings, against=against, save=save, stages=stages)
    if as_json:
        print_json(results)
        return
    for result in results:
        print_result(result)


def print_result(result: dict[str, Any]) -> None:
    """Print one measurement as a table."""
    has_other = result["against"] is not None
    columns = [("metric", False), ("model", True), ("95 %", False)]
    if has_other:
        columns += [
            (short_name(result["against"]), True),
            ("95 %", False),
            ("difference", True),
            ("95 %", False),
        ]
    part = f", {result['split']}" if result["split"] else ""
    table = make_table(
        f"{result['task']} on {short_name(result['data'])}{part}: {result['samples']:,} {result['unit']}",
        columns,
    )
    for metric in result["metrics"]:
        cells = [metric["metric"], _number(metric["value"]), _interval(metric["interval"])]
        if has_other:
            for name in ("against", "difference"):
                cells += [_number(metric[name]), _interval(metric[f"{name}_interval"])]
        table.add_row(*cells)
    print_table(table)
    chosen = {name: value for name, value in result["settings"].items() if value is not None}
    typer.echo(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in chosen.items()))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) < 1 else f"{value:.3f}"


def _interval(bounds: list[float] | None) -> str:
    return "-" if bounds is None else f"{_number(bounds[0])} to {_number(bounds[1])}"
