"""`gqkva report`: a page about a converted folder, with plots."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from gqkva_convert.checkpoint.sidecars import BENCH_PICTURE, PAGE, PICTURES
from gqkva_convert.description.facts import Facts
from gqkva_convert.description.page import render_page
from gqkva_convert.description.plots import (
    ERRORS,
    HEADS,
    LOSS,
    QUALITY,
    SIZES,
    caption,
    draw_errors,
    draw_heads,
    draw_quality,
    draw_sizes,
)
from gqkva_convert.description.prose import folder_text
from gqkva_convert.errors import OutputError


def report(folder: str | Path) -> list[Path]:
    """Write a page about a converted folder: what was done, what it costs, what it gains.

    The page is one file that needs no network and runs nothing. It says what the conversion's report and the
    measurements beside it say; what was not measured is not on it.

    Args:
        folder: Output of `convert`, `export` or `uptrain`, maybe measured by `evaluate` and `bench`.

    Returns:
        The files written into the folder: ``report.html``, and its plots.

    Raises:
        GqkvaError: The folder or one of its files cannot be read; says which.
        OutputError: The folder cannot be written.
    """
    target = Path(folder)
    facts = Facts(target, None)
    try:
        with TemporaryDirectory(prefix=".gqkva-report-", dir=target) as name:
            scratch = Path(name)
            page = render_page(facts.name, folder_text(facts), _draw(facts, scratch))
            (scratch / PAGE).write_text(page, encoding="utf-8")
            for old in PICTURES:
                (target / old).unlink(missing_ok=True)
            written = sorted(path.name for path in scratch.iterdir())
            for file in written:
                (scratch / file).replace(target / file)
    except OSError as error:
        raise OutputError(f"cannot write into {target}: {error.strerror or error}") from error
    return [target / file for file in [PAGE, *(file for file in written if file != PAGE)]]


def _draw(facts: Facts, scratch: Path) -> dict[str, list[tuple[Path, str]]]:
    """Draw the plots and return them with captions, by the heading that they follow."""
    speed = facts.folder / BENCH_PICTURE
    sizes = [(name.partition(",")[0], before, after) for name, before, after in facts.sizes()]
    found: dict[str, list[Path | None]] = {
        "Heads and size": [
            draw_heads(facts.plan.blocks, scratch / HEADS),
            draw_sizes(sizes, scratch / SIZES),
            draw_errors(facts.block_errors(), scratch / ERRORS),
        ],
        "Quality": [draw_quality(facts.evaluation, facts.other_of(QUALITY), scratch / QUALITY)],
        "Speed": [speed if facts.bench is not None and speed.is_file() else None],
        "Training after the conversion": [_training_curve(facts, scratch / LOSS)],
    }
    drawn = {heading: [file for file in files if file is not None] for heading, files in found.items()}
    return {
        heading: [(file, caption(file.name, facts.other_of(file.name))) for file in files]
        for heading, files in drawn.items()
        if files
    }


def _training_curve(facts: Facts, copy: Path) -> Path | None:
    """Copy the plot that training drew, if its folder still exists."""
    if facts.training is None or facts.training.metrics is None:
        return None
    curve = Path(facts.training.metrics).with_name("loss.png")
    return Path(shutil.copyfile(curve, copy)) if curve.is_file() else None
