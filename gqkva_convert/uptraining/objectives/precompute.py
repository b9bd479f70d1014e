"""`gqkva teacher`: the teacher's likeliest tokens for the rows of a run, so that the student trains alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqkva_convert.checkpoint.folder import open_checkpoint
from gqkva_convert.checkpoint.hub import locate
from gqkva_convert.checkpoint.jsonfile import write_json
from gqkva_convert.checkpoint.publish import published_folder
from gqkva_convert.errors import TrainingError
from gqkva_convert.progress import Stages, no_stages
from gqkva_convert.progress import note as tell
from gqkva_convert.units import human_bytes
from gqkva_convert.uptraining.settings import TrainingSettings, choose_settings

if TYPE_CHECKING:
    from torch import Tensor

    from gqkva_convert.uptraining.objectives.runner import ModelRunner
    from gqkva_convert.uptraining.rows.row import Row
    from gqkva_convert.uptraining.rows.stored import StoredRows

# Most positions in one forward pass.
_POSITIONS = 8192
# Means no probability at all; float16 has no smaller numbers to spare.
_LEAST = -1000.0


def teacher(
    model: str | Path,
    out: str | Path,
    settings: TrainingSettings | str | Path | None = None,
    *,
    data: str | Path | None = None,
    held_out: str | Path | None = None,
    column: Sequence[str] | None = None,
    tokens: int | str | None = None,
    length: int | None = None,
    seed: int | None = None,
    top_k: int = 64,
    revision: str | None = None,
    stages: Stages = no_stages,
    **others: Any,
) -> dict[str, Any]:
    """Run a source model over the rows of a run and write down its likeliest tokens.

    Args:
        model: The source: a folder or a Hub id.
        out: Folder to write; `uptrain` takes it as ``teacher``.
        settings: Those of the run: data, budget, length, seed and what else decides its rows; a YAML file of
            them, which keywords replace, or `TrainingSettings`, instead of keywords.
        data: What to train on: a file, a folder, a Hub id or a short name.
        held_out: Data to measure on; by default rows of ``data`` that are not trained on.
        column: Columns to read, or ``KNOWN=NAME`` where a known column has another name.
        tokens: Budget in tokens, such as ``"20M"``.
        length: Tokens a row.
        seed: Seed of everything drawn at random.
        top_k: Tokens kept a position; all others count as one.
        revision: Branch, tag or commit of a Hub id.
        stages: Shows progress.
        **others: Any other setting of docs/training-settings.md.

    Returns:
        JSON data: the folder, rows, bytes, and the teacher's held-out loss.

    Raises:
        GqkvaError: With a message for the user; nothing is written under ``out`` then.
    """
    chosen = choose_settings(settings, locals())

    from gqkva_convert.calibration.network import load_network
    from gqkva_convert.data.tasks import CAUSAL, trained_task
    from gqkva_convert.source.model import family_of
    from gqkva_convert.source.stock import require_loadable
    from gqkva_convert.uptraining.objectives.runner import ModelRunner
    from gqkva_convert.uptraining.objectives.teacher import NOTE
    from gqkva_convert.uptraining.rows.reading import open_rows
    from gqkva_convert.uptraining.rows.stored import StoredRows

    located = locate(str(model), revision)
    checkpoint = open_checkpoint(located.folder)
    family = family_of(checkpoint.config, located.folder)
    require_loadable(checkpoint, family)
    network = load_network(located.folder, checkpoint.nbytes, family.architecture)
    task = trained_task(network)
    rows, collator = open_rows(chosen, located.folder, network, task)
    for reading in rows.readings:
        tell(stages, reading.describe())
    lengths = isinstance(rows, StoredRows) and {len(row["input_ids"]) for row in _some(rows.rows)}
    if task != CAUSAL or not isinstance(rows, StoredRows) or lengths != {int(rows.tokens_per_row)}:
        raise TrainingError(
            f"a teacher of a {task} model with these settings is not written down: only packed rows of "
            "causal language models are, neither streamed nor apart; name the model itself as the teacher"
        )
    if not 1 <= top_k <= network.config.vocab_size:
        raise TrainingError(f"--top-k {top_k}: choose from 1 to {network.config.vocab_size}")
    if any(parameter.device.type == "meta" for parameter in network.parameters()):
        raise TrainingError(
            f"{located.name} has {human_bytes(checkpoint.nbytes)}, which do not fit into memory here; "
            "run the teacher where they do"
        )
    runner = ModelRunner(network, has_head=True)
    runner.check_head(collator.batch([rows.rows[0]], []))
    with published_folder(Path(out), overwrite=False) as folder:
        written = _write_files(runner, rows, collator, folder, chosen.temperature, top_k, stages)
        note = {
            "model": located.name,
            "revision": located.revision,
            "rows": len(rows.rows),
            "digest": rows.digest,
            "vocab_size": network.config.vocab_size,
            "top_k": top_k,
            "temperature": chosen.temperature,
            "held_out": chosen.held_out,
            "held_out_loss": _held_out_loss(runner, rows.held_out, collator),
            "bytes": written,
        }
        write_json(folder / NOTE, note)
    return {"folder": str(out), **note}


def _some(rows: Sequence[Row]) -> list[Row]:
    return [rows[number] for number in range(0, len(rows), max(1, len(rows) // 64))]


def _write_files(
    runner: ModelRunner,
    rows: StoredRows,
    collator: Any,
    folder: Path,
    temperature: float,
    top_k: int,
    stages: Stages,
) -> int:
    """Write a file for every `ROWS_PER_FILE` rows; return the bytes of all files."""
    import torch
    from safetensors.torch import save_file

    from gqkva_convert.uptraining.objectives.teacher import ROWS_PER_FILE, file_name

    advance, written = stages("running the teacher", len(rows.rows)), 0
    per_pass = max(1, _POSITIONS // int(rows.tokens_per_row))
    for number, start in enumerate(range(0, len(rows.rows), ROWS_PER_FILE)):
        values, indices = [], []
        end = min(start + ROWS_PER_FILE, len(rows.rows))
        for first in range(start, end, per_pass):
            some = [rows.rows[place] for place in range(first, min(first + per_pass, end))]
            found = _likeliest(runner, collator.batch(some, []), temperature, top_k)
            values.append(found[0])
            indices.append(found[1])
            advance(len(some))
        file = folder / file_name(number)
        save_file({"values": torch.cat(values), "indices": torch.cat(indices)}, file)
        written += file.stat().st_size
    return written


def _likeliest(
    runner: ModelRunner, batch: dict[str, Any], temperature: float, top_k: int
) -> tuple[Tensor, Tensor]:
    """Compute the likeliest tokens and their logits below the highest, all others' together last.

    Returns:
        ``(rows, positions, k + 1)`` in float16, and ``(rows, positions, k)`` in int32. Differences to the
        highest keep their digits in float16 and still sum to 1 when made probabilities again.
    """
    import torch

    from gqkva_convert.uptraining.objectives.losses import positions_at_once

    with torch.inference_mode():
        hidden = runner.run(batch).head_input
        assert hidden is not None
        head, values, indices = runner.head(), [], []
        size = positions_at_once(hidden.device, head.weight.shape[0])
        for some in torch.split(hidden.flatten(0, 1), size):
            logits = head.logits(some) / temperature
            top = logits.topk(top_k)
            others = logits.scatter(-1, top.indices, float("-inf")).logsumexp(-1, keepdim=True)
            kept = torch.cat([top.values, others], dim=-1) - top.values[..., :1]
            values.append(kept.clamp(min=_LEAST).half().cpu())
            indices.append(top.indices.int().cpu())
    rows = len(hidden)
    return torch.cat(values).reshape(rows, -1, top_k + 1), torch.cat(indices).reshape(rows, -1, top_k)


def _held_out_loss(runner: ModelRunner, rows: Sequence[Row], collator: Any) -> float:
    import torch

    from gqkva_convert.uptraining.objectives.losses import positions_at_once, task_loss
    from gqkva_convert.uptraining.rows.batches import IGNORED

    total, items = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            batch = collator.batch([row], [])
            hidden = runner.run(batch).head_input
            assert hidden is not None
            labels = batch["labels"].to(hidden.device)
            valid = labels != IGNORED
            size = positions_at_once(hidden.device, runner.head().weight.shape[0])
            parts = torch.split(hidden[valid], size), torch.split(labels[valid], size)
            for some, wanted in zip(*parts, strict=True):
                total += float(task_loss(runner.head().logits(some), wanted))
            items += int(valid.sum())
    return total / max(items, 1)
