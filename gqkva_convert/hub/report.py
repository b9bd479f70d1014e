"""`gqkva report`: a page about a converted folder, with pictures."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from gqkva_convert.checkpoint.sidecars import BENCH_PICTURE, PAGE, PICTURES
from gqkva_convert.errors import OutputError
from gqkva_convert.hub.page import render_page
from gqkva_convert.hub.pictures import (
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
from gqkva_convert.hub.prose import Prose


def report(folder: str | Path) -> list[Path]:
    """Write a page about a converted folder: what was done, what it costs, what it gains.

    The page is one file that needs no network and runs nothing. It says what the conversion's report and the
    measurements beside it say; what was not measured is not on it.

    Args:
        folder: Output of `convert`, `export` or `uptrain`, maybe measured by `evaluate` and `bench`.

    Returns:
        The files written into the folder: ``report.html``, and the pictures on it.

    Raises:
        GqkvaError: The folder or one of its files cannot be read; says which.
        OutputError: The folder cannot be written.
    """
    target = Path(folder)
    prose = Prose(target, None)
    try:
        with TemporaryDirectory(prefix=".gqkva-report-", dir=target) as name:
            scratch = Path(name)
            pictures = _draw(prose, scratch)
            page = render_page(prose.name, prose.text(), pictures)
            (scratch / PAGE).write_text(page, encoding="utf-8")
            for old in PICTURES:
                (target / old).unlink(missing_ok=True)
            written = sorted(path.name for path in scratch.iterdir())
            for file in written:
                (scratch / file).replace(target / file)
    except OSError as error:
        raise OutputError(f"cannot write into {target}: {error.strerror or error}") from error
    return [target / file for file in [PAGE, *(file for file in written if file != PAGE)]]


def _draw(prose: Prose, scratch: Path) -> dict[str, list[tuple[Path, str]]]:
    """Pictures by the heading that they stand under, with what they show."""
    sizes = [(name.partition(",")[0], before, after) for name, before, after in prose.sizes()]
    found: dict[str, list[Path | None]] = {
        "Heads and size": [
            draw_heads(prose.plan.blocks, scratch / HEADS),
            draw_sizes(sizes, scratch / SIZES),
            draw_errors(prose.block_errors(), scratch / ERRORS),
        ],
        "Quality": [_quality(prose, scratch / QUALITY)],
        "Speed": [_speed(prose)],
        "Training after the conversion": [_training_curve(prose, scratch / LOSS)],
    }
    drawn = {heading: [file for file in files if file is not None] for heading, files in found.items()}
    return {
        heading: [(file, caption(file.name, prose.other_of(file.name))) for file in files]
        for heading, files in drawn.items()
        if files
    }


def _quality(prose: Prose, file: Path) -> Path | None:
    """A picture of metrics, where some were measured of another model too."""
    return None if prose.evaluation is None else draw_quality(prose.evaluation, prose.other_of(QUALITY), file)


def _speed(prose: Prose) -> Path | None:
    """The picture that `gqkva bench` drew."""
    picture = prose.folder / BENCH_PICTURE
    return picture if prose.bench is not None and picture.is_file() else None


def _training_curve(prose: Prose, copy: Path) -> Path | None:
    """A copy of the picture that training drew, where its folder is still there."""
    recorded = (prose.training or {}).get("metrics")
    if not isinstance(recorded, str):
        return None
    curve = Path(recorded).with_name("loss.png")
    return Path(shutil.copyfile(curve, copy)) if curve.is_file() else None
