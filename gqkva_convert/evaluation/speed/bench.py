"""`gqkva bench`: prefill and decoding speed, KV cache and peak memory, beside the limit of the device."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqkva_convert.checkpoint.digest import files_sha256
from gqkva_convert.checkpoint.hub import locate
from gqkva_convert.errors import EvaluationError, OutputError
from gqkva_convert.evaluation.speed.results import save_results
from gqkva_convert.evaluation.speed.rows import CONVERTED, ORIGINAL, speedups
from gqkva_convert.evaluation.speed.settings import settings_of
from gqkva_convert.modeling.log_levels import quiet_transformers
from gqkva_convert.progress import Stages, no_stages
from gqkva_convert.records.bench import Bench
from gqkva_convert.records.environment import describe_run
from gqkva_convert.source.model import open_model
from gqkva_convert.source.stock import require_loadable

if TYPE_CHECKING:
    from gqkva_convert.evaluation.speed.run import Run


def bench(
    model: str | Path,
    *,
    against: str | Path | None = None,
    context: str | Sequence[int] | None = None,
    batch: str | Sequence[int] = (1, 16),
    new_tokens: int = 32,
    dtype: str = "bfloat16",
    device: str = "auto",
    attn_implementation: str = "sdpa",
    cache: str = "static",
    rounds: int = 5,
    seed: int = 0,
    save: bool = True,
    progress: Stages | None = None,
) -> dict[str, Any]:
    """Measure the speed of reading and generating, and the memory it takes.

    A language model reads prompts of random tokens (prefill) and generates the last ``new_tokens`` of each
    context, greedily, from a cache that is filled once. An encoder-decoder's context is the encoder's. A
    model that generates nothing makes forward passes. Nothing depends on the values of weights.

    Args:
        model: Checkpoint folder, stock or grouped.
        against: Folder or Hub id of a model to measure beside it, as a rule the one it was made from.
        context: Positions in the cache, or in the input; by default 4,096 and 32,768, and 512 in inputs of
            encoders, at most the model's. Like ``batch`` several numbers, or text with commas.
        batch: Sequences at once.
        new_tokens: Tokens that are generated in each round, the last of the context.
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        attn_implementation: As transformers calls it.
        cache: ``static``, allocated once, or ``dynamic``, which `generate` uses by default and which grows
            by a copy at each token.
        rounds: Measurements of each number; the two models take turns.
        seed: Seed of the tokens.
        save: Save ``gqkva_bench.json`` and ``gqkva_bench.png`` in the model's folder, if it is one.
        progress: Begins a progress stage.

    Returns:
        JSON data, described in docs/bench.md.

    Raises:
        EvaluationError: A setting that cannot be, or models that do not load or cannot be compared.
        OutputError: The folder cannot be written.
        GqkvaError: A folder is not a checkpoint of a known family.
    """
    settings = settings_of(locals())
    names = {CONVERTED: str(model)} | ({} if against is None else {ORIGINAL: str(against)})
    sources = {name: open_model(locate(where).folder) for name, where in names.items()}
    for source in sources.values():
        require_loadable(source.checkpoint, source.family)
    folder = Path(model)
    save = save and folder.is_dir()  # of a model of the Hub nothing is kept
    if save and not os.access(folder, os.W_OK):
        raise OutputError(f"{folder} cannot be written; --no-save leaves it alone")

    from gqkva_convert.evaluation.speed.run import Run

    quiet_transformers()
    run = Run(settings, sources, progress or no_stages)
    rows = run.rows()
    if all(row.skipped for row in rows):
        reasons = "; ".join(dict.fromkeys(str(row.skipped) for row in rows))
        raise EvaluationError(f"nothing could be measured: {reasons}; choose a smaller --context or --batch")
    result = Bench(
        format_version=1,
        **_circumstances(run),
        model=names[CONVERTED],
        against=names.get(ORIGINAL),
        model_sha256=files_sha256({file.name: file for file in sources[CONVERTED].checkpoint.files}),
        rows=rows,
        speedup=speedups(rows),
    )
    if save:
        save_results(folder, result)
    return result.to_dict()


def _circumstances(run: Run) -> dict[str, Any]:
    """Describe what the numbers depend on."""
    import torch

    described = describe_run()
    is_gpu = run.device.type == "cuda"
    counted = "PyTorch's allocator held" if is_gpu else "the process's resident memory grew by"
    return {
        **described,
        "device": torch.cuda.get_device_name(run.device) if is_gpu else "cpu",
        "dtype": run.settings.dtype,
        "machine": f"{described['machine']}, {platform.system()} {platform.machine()}",
        "settings": {
            **asdict(run.settings),
            "context": run.contexts,
            "kind": run.kind,
            "threads": torch.get_num_threads(),
            "peak_memory": f"weights and the most that {counted} beside them",
        },
        "bandwidth_bytes_per_second": max(run.bandwidths.values()),
        "bandwidths": run.bandwidths,
    }
