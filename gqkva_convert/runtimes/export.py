"""`gqkva export`: the same function in a form that others load."""

from __future__ import annotations

from pathlib import Path

from gqkva_convert.conversion.export import prepare_export
from gqkva_convert.conversion.write import write
from gqkva_convert.errors import UsageError
from gqkva_convert.progress import Progress, Stages, no_stages
from gqkva_convert.runtimes.gguf.write import prepare_gguf, write_gguf

RUNTIMES = ("gguf",)


def export(
    model: str | Path,
    out: str | Path,
    *,
    architecture: str | None = None,
    runtime: str | None = None,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    stages: Stages = no_stages,
) -> Path:
    """Rewrite a grouped checkpoint as one that computes the same without gqkva: stock, or for a runtime.

    Query heads that attention heads share are repeated. Where the family reads ``num_key_value_heads``, keys
    and values keep their number: heads that share them are neighbours, and groups of unequal size are filled
    up with query heads whose output counts for nothing. Layers with fewer key/value heads than others
    get copies, except under ``architecture="deci"``. Other families hold one head for each attention head, so
    that theirs are repeated.

    With ``runtime="gguf"`` the folder holds one file for llama.cpp, ``model-<dtype>.gguf``, with weights,
    hyperparameters and tokenizer, and ``gguf_report.json``, which says where it comes from. Weights pass
    through memory a few rows at a time, and no second checkpoint is written on the way. A Llama whose layers
    differ in key/value heads becomes a ``deci`` there.

    Args:
        model: Folder written by `convert`, or any checkpoint.
        out: Folder to write.
        architecture: ``"deci"`` for a Llama whose layers keep key/value heads of their own number, which
            llama.cpp converts and runs and transformers has no class for; None for a stock architecture.
        runtime: ``"gguf"`` for a GGUF file, None for a checkpoint.
        dtype: With a runtime: ``"f32"``, ``"f16"``, ``"bf16"`` or ``"q8_0"`` (blocks of 32 bytes with one
            scale) for matrices; vectors are float32. None keeps what the checkpoint has.
        max_shard_size: Largest output file, such as ``"2GB"``; None keeps the source's division.
        overwrite: Replace an existing folder that was written here.
        progress: Called with the number of output bytes just written; a GGUF file's count a second time when
            they are read for their checksum.
        stages: Begins a stage of progress.

    Returns:
        The folder written.

    Raises:
        NotExpressibleError: No stock architecture of the family, or not the runtime, can hold the function.
        GqkvaError: With a message for the user; ``out`` is unchanged then.
    """
    require_options(runtime, dtype, max_shard_size)
    if runtime is not None:
        prepared = prepare_gguf(model, out, architecture=architecture, dtype=dtype)
        write_gguf(prepared, overwrite=overwrite, progress=progress, stages=stages)
        return prepared.conversion.target
    conversion = prepare_export(model, out, architecture=architecture, max_shard_size=max_shard_size)
    write(conversion, overwrite=overwrite, progress=progress, stages=stages)
    return conversion.target


def require_options(runtime: str | None, dtype: str | None, max_shard_size: str | None) -> None:
    """Refuse options that contradict each other.

    Raises:
        UsageError: Says which.
    """
    if runtime is not None and runtime not in RUNTIMES:
        raise UsageError(f"no runtime {runtime!r} to export for; choose {' or '.join(RUNTIMES)}")
    if runtime is None and dtype is not None:
        raise UsageError("--dtype goes with --runtime gguf; `gqkva convert --dtype` casts a checkpoint")
    if runtime is not None and max_shard_size is not None:
        raise UsageError("--runtime gguf writes one file; leave --max-shard-size out")
