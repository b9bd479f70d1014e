"""Results beside the weights: a JSON file and a plot, each put in place whole."""

from __future__ import annotations

import os
from pathlib import Path

from gqkva_convert.checkpoint.jsonfile import write_json
from gqkva_convert.checkpoint.sidecars import BENCH, BENCH_PICTURE
from gqkva_convert.errors import OutputError
from gqkva_convert.evaluation.speed.plots import draw
from gqkva_convert.records.bench import Bench


def save_results(folder: Path, result: Bench) -> None:
    """Write results into a checkpoint folder, over older ones.

    Raises:
        OutputError: The folder cannot be written.
    """
    pairs = [(folder / f".{name}.{os.getpid()}.partial", folder / name) for name in (BENCH_PICTURE, BENCH)]
    (plot, _), (data, _) = pairs
    try:
        draw(result, plot)
        write_json(data, result.to_dict())
        for scratch, target in pairs:
            scratch.replace(target)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        for scratch, _ in pairs:
            scratch.unlink(missing_ok=True)
