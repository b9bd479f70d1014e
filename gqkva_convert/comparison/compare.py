"""`gqkva compare`: models side by side, from what was measured of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gqkva_convert.comparison.output import write
from gqkva_convert.comparison.rows import compare_models


def compare(
    folders: Iterable[str | Path],
    *,
    metrics: Sequence[str] = (),
    size: str = "parameters",
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Put models side by side: their sizes, and what `gqkva evaluate` measured of them.

    Folders whose names differ in ``-seed0``, ``-seed1`` ... at their end are repetitions: their row has the
    mean, with Student's 95 % interval over them.

    Args:
        folders: Checkpoint folders, or folders that hold some.
        metrics: Names of metrics as in results, such as ``top-1 accuracy``, or ``top-1 accuracy minus
            the original's`` for the paired difference; one that was measured on several data sets is named
            ``METRIC on DATA``. None: the first of each data set.
        size: Horizontal axis of the plots: ``parameters``, ``bytes`` or ``kv-cache``.
        out: Folder to write comparison.json, comparison.md and a plot per metric to; None for none.

    Returns:
        JSON data: a row a model.

    Raises:
        EvaluationError: Nothing was measured, or not what is asked for.
        CheckpointError: A folder holds no model.
        OutputError: ``out`` cannot be written.
    """
    comparison = compare_models(folders, metrics=metrics, size=size)
    if out is not None:
        write(comparison, Path(out))
    return comparison.to_dict()
