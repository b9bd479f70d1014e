"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

# What every option that names data takes.
DATA_KINDS = (
    "a txt, jsonl, csv or parquet file, a folder of images, a Hub id (ID:CONFIGURATION where it has "
    "several), or wikitext, c4, stsb, cifar10, python-library"
)

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Checkpoint folder, Hub id, or built-in.", show_default=False)
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.", show_default=False)]
KeyValueHeads = Annotated[
    int | None,
    typer.Option("--gkv", help="Key/value heads to keep: GQA, or MQA when 1.", show_default=False),
]
QueryHeads = Annotated[
    int | None,
    typer.Option(
        "--gq",
        help="Query heads to keep: GKVA, or MKVA when 1; with --gkv GQKVA (GQ x GKV = heads).",
        show_default=False,
    ),
]
Blocks = Annotated[
    str | None,
    typer.Option(
        help="Kinds of attention to convert, such as decoder (with cross-attention) or encoder,cross.",
        show_default=False,
    ),
]
Merge = Annotated[
    str | None,
    typer.Option(
        help="How heads become one: closed-form, closed-form-weights, aligned, aligned-rescaled, auto, mean, "
        "first, norm-weighted or random; by default auto with --calibration, closed-form without.",
        show_default=False,
    ),
]
Grouping = Annotated[
    str | None,
    typer.Option(
        help="Which heads become one: neighbour, random, weights, loss, key-norm, evolution, evolution-ec, "
        "and with --calibration activations, activations-raw, asym or asym-raw; by default loss with "
        "--calibration, neighbour without.",
        show_default=False,
    ),
]
Refine = Annotated[
    str | None,
    typer.Option(
        help="Fit merged blocks to the original's: output, layerwise, both (with a comma) or none; by "
        "default output with --calibration.",
        show_default=False,
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help=f"Data to run through the model: {DATA_KINDS}.",
        show_default=False,
    ),
]
CalibrationSamples = Annotated[
    int | None,
    typer.Option(help="Sequences or images of --calibration; by default 128.", show_default=False),
]
CalibrationLength = Annotated[
    int | None,
    typer.Option(
        help="Tokens a sequence; by default 2048, or as many as the model reads.", show_default=False
    ),
]
KeyValueBudget = Annotated[
    str | None,
    typer.Option(
        "--kv-budget",
        help="Key/value heads of all layers together, as 25% or a number; each layer keeps as many as lose "
        "least.",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="Seed of everything drawn at random; by default 0.", show_default=False)
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16, float16 or float64; by default each tensor keeps its own.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
