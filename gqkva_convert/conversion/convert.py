"""`gqkva convert`: prepare, then write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

from gqkva_convert.calibration.data import DataSettings
from gqkva_convert.conversion.prepare import prepare
from gqkva_convert.conversion.write import kept_shards, write
from gqkva_convert.errors import UsageError
from gqkva_convert.plans.request import given_wishes, make_request
from gqkva_convert.progress import Progress, Stages, no_stages


@overload
def convert(
    model: str | Path, out: str | Path | None = None, *, dry_run: Literal[True], **options: Any
) -> dict[str, Any]: ...


@overload
def convert(
    model: str | Path,
    out: str | Path | None = None,
    *,
    gkv: int | None = None,
    gq: int | None = None,
    kv_budget: str | None = None,
    plan: str | Path | None = None,
    blocks: str | None = None,
    merge: str | None = None,
    grouping: str | None = None,
    refine: str | None = None,
    calibration: str | Path | DataSettings | None = None,
    calibration_samples: int | None = None,
    calibration_length: int | None = None,
    column: Sequence[str] | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    dry_run: Literal[False] = False,
    progress: Progress | None = None,
    stages: Stages = no_stages,
) -> Path: ...


# The first overload leaves the other options to the second.
def convert(  # type: ignore[misc]
    model: str | Path,
    out: str | Path | None = None,
    *,
    gkv: int | None = None,
    gq: int | None = None,
    kv_budget: str | None = None,
    plan: str | Path | None = None,
    blocks: str | None = None,
    merge: str | None = None,
    grouping: str | None = None,
    refine: str | None = None,
    calibration: str | Path | DataSettings | None = None,
    calibration_samples: int | None = None,
    calibration_length: int | None = None,
    column: Sequence[str] | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    stages: Stages = no_stages,
) -> Path | dict[str, Any]:
    """Merge a checkpoint's heads and write the result.

    The result is a stock checkpoint where the family's stock architecture can hold it. Any other carries its
    own modelling file: it loads with ``trust_remote_code=True``, and without where gqkva is imported.

    Without calibration data memory stays at a few tensors (one block's under ``closed-form``) whatever the
    model's size. Make the same call again to resume an interrupted conversion from its last complete shard.

    Args:
        model: Checkpoint folder or Hub id.
        out: Folder to write; by default ``<model>-<variant>`` in the working directory.
        gkv: Key/value heads to keep; None keeps all.
        gq: Query heads to keep; None keeps all.
        kv_budget: Key/value heads of all layers together, such as ``"25%"``; layers then differ.
        plan: A plan file, instead of the other options up to ``dtype``.
        blocks: Kinds of attention to convert, such as ``"decoder"``; None for all (see `make_plan`).
        merge: How heads become one, a name of docs/methods.md; None for ``auto`` with calibration data and
            ``closed-form`` without.
        grouping: Which heads become one; None for ``loss`` with calibration data and ``neighbour`` without.
        refine: ``"output"``, ``"layerwise"``, both or ``"none"``; None for ``output`` with calibration data.
        calibration: Data to run through the model: a file, a folder, a Hub id, or `DataSettings`.
        calibration_samples: Sequences or images of them; None for 128.
        calibration_length: Tokens per sequence; None for 2,048, or the model's maximum if that is less.
        column: Columns of ``calibration`` to read, or ``KNOWN=NAME`` where a known column has another name.
        seed: Seed of everything drawn at random; None for 0.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None keeps each tensor's dtype.
        max_shard_size: Largest output file, such as ``"2GB"``; None keeps the source's division.
        revision: Branch, tag or commit of a Hub id.
        overwrite: Replace an existing checkpoint folder, which stays until the new one is complete.
        dry_run: Write nothing.
        progress: Called with the number of output bytes just written.
        stages: Begins a stage of progress: of what looks at weights or data, and of writing.

    Returns:
        The folder written; with ``dry_run`` JSON data: the plan and every file and tensor.

    Raises:
        GqkvaError: With a message for the user; nothing is written to ``out`` then.
        KeyboardInterrupt: It was interrupted; says how many shards are kept, where some are.
    """
    wishes = given_wishes(locals())
    if plan is not None and wishes:
        raise UsageError(f"--plan {plan} says everything itself; edit it instead of giving options beside it")
    conversion = prepare(
        model,
        out,
        request=make_request(**wishes) if plan is None else None,
        plan=plan,
        max_shard_size=max_shard_size,
        revision=revision,
        stages=stages,
    )
    if dry_run:
        return conversion.to_dict()
    try:
        write(conversion, overwrite=overwrite, progress=progress, stages=stages)
    except KeyboardInterrupt as error:
        kept = kept_shards(conversion.target)
        if kept:
            error.args = (
                f"{kept} of {len(conversion.shards)} shards are complete and kept; "
                "run the same command again to resume",
            )
        raise
    return conversion.target
