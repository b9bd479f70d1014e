"""Options of training that `uptrain`, `pretrain` and `teacher` share, and what they come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gqkva_convert.cli.options import DATA_KINDS
from gqkva_convert.errors import TrainingError

if TYPE_CHECKING:
    from gqkva_convert.uptraining.settings import TrainingSettings

Recipe = Annotated[
    Path | None, typer.Option(help="YAML file of settings; options override it.", show_default=False)
]
Data = Annotated[
    str | None,
    typer.Option(
        help=f"What to train on: {DATA_KINDS}.",
        show_default=False,
    ),
]
HeldOut = Annotated[
    str | None,
    typer.Option(help="Data to measure on; by default rows of --data left out.", show_default=False),
]
Teacher = Annotated[
    str | None,
    typer.Option(help="The source model, or a folder of `gqkva teacher`.", show_default=False),
]
Tokens = Annotated[str | None, typer.Option(help="Budget in tokens, such as 20M.", show_default=False)]
Samples = Annotated[
    str | None, typer.Option(help="Budget in rows: images, pairs of texts.", show_default=False)
]
Alpha = Annotated[
    str | None,
    typer.Option(help="Budget as a share of --pretraining-tokens, such as 0.05.", show_default=False),
]
PretrainingTokens = Annotated[
    str | None, typer.Option(help="Tokens the source was trained on, such as 2T.", show_default=False)
]
Epochs = Annotated[
    int | None,
    typer.Option(help="How often the budget's rows are gone over; by default once.", show_default=False),
]
Length = Annotated[
    int | None,
    typer.Option(help="Tokens a row; by default 2048, or as many as the model reads.", show_default=False),
]
BatchSize = Annotated[
    int | None, typer.Option(help="Rows a step, of all processes; by default 32.", show_default=False)
]
PerDevice = Annotated[
    int | None,
    typer.Option(
        "--per-device-batch-size",
        help="Rows of one forward pass; the rest of a step is accumulated.",
        show_default=False,
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(help="Highest learning rate; by default by the model's width.", show_default=False),
]
Seed = Annotated[int | None, typer.Option(help="Seed of everything drawn at random.", show_default=False)]
Others = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other setting of docs/training-settings.md; give it several times.",
        show_default=False,
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Option(
        help="Folder of checkpoints and metrics; by default OUT with -run behind its name.",
        show_default=False,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the run folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start anew over an earlier run and result.")]
ReportTo = Annotated[
    list[str] | None,
    typer.Option(help="Tracker of Accelerate: tensorboard, wandb ...; give it several times."),
]


def settings_of(recipe: Path | None, others: list[str] | None, **options: Any) -> TrainingSettings:
    """Settings from a recipe, with options over it.

    Raises:
        TrainingError: Something in them cannot be.
    """
    from gqkva_convert.uptraining.settings import make_settings, read_recipe

    given = {name: value for name, value in options.items() if value is not None}
    for other in others or ():
        name, equals, value = other.partition("=")
        if not equals:
            raise TrainingError(f"--set {other}: give NAME=VALUE")
        given[name.strip().replace("-", "_")] = value.strip()
    if recipe is None:
        return make_settings(given)
    return make_settings({**read_recipe(recipe), **given}, str(recipe))
