"""`gqkva uptrain` and `gqkva pretrain`: from a folder and data to a trained folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.folder import open_checkpoint
from gqkva_convert.checkpoint.hub import BUILT_IN, locate
from gqkva_convert.checkpoint.publish import check_target, clear_lock
from gqkva_convert.checkpoint.sidecars import REPORT, carried_files
from gqkva_convert.data.names import DataName, everywhere, exists
from gqkva_convert.errors import CheckpointError, GqkvaError, OutputError, TrainingError
from gqkva_convert.records.report import read_training
from gqkva_convert.source.model import family_of
from gqkva_convert.source.stock import require_loadable
from gqkva_convert.uptraining.job import Job, Watch
from gqkva_convert.uptraining.run_folder import METRICS, RunFolder
from gqkva_convert.uptraining.settings import (
    TrainingSettings,
    choose_settings,
    make_settings,
    refuse_settings,
)

# Settings that name what is read.
_READ = ("data", "held_out", "teacher")


def uptrain(
    folder: str | Path,
    out: str | Path | None = None,
    settings: TrainingSettings | str | Path | None = None,
    *,
    data: str | Path | None = None,
    held_out: str | Path | None = None,
    column: Sequence[str] | None = None,
    teacher: str | Path | None = None,
    tokens: int | str | None = None,
    samples: int | str | None = None,
    alpha: float | str | None = None,
    pretraining_tokens: int | str | None = None,
    num_train_epochs: int | None = None,
    length: int | None = None,
    batch_size: int | None = None,
    per_device_batch_size: int | None = None,
    learning_rate: float | None = None,
    loss: Mapping[str, float] | str | None = None,
    matching: float | str | None = None,
    train: str | None = None,
    mixed_precision: str | None = None,
    stop_within: float | str | None = None,
    seed: int | None = None,
    run_folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    any_model: bool = False,
    report_to: Sequence[str] = (),
    watch: Watch | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Train a converted model until it answers as well as its source did.

    Runs under Accelerate: alone, or in as many processes as ``accelerate launch`` started, with the same
    rows and, up to rounding, the same result.

    Every setting of docs/training-settings.md is a keyword; None leaves it to its default.

    Args:
        folder: Output of `convert`; with ``any_model`` also a Hub id or ``built-in``.
        out: Folder to write; by default ``folder`` with ``-uptrained`` behind its name.
        settings: A YAML file of settings, which keywords replace; or `TrainingSettings`, instead of keywords.
        data: What to train on: a file, a folder, a Hub id or a short name.
        held_out: Data to measure on; by default rows of ``data`` that are not trained on.
        column: Columns to read, or ``KNOWN=NAME`` where a known column has another name.
        teacher: The source model, or a folder of `teacher`.
        tokens: Budget in tokens, such as ``"20M"``.
        samples: Budget in rows: images, pairs of texts.
        alpha: Budget as a share of ``pretraining_tokens``.
        pretraining_tokens: Tokens the source was trained on, such as ``"2T"``.
        num_train_epochs: How often the budget's rows are read.
        length: Tokens a row.
        batch_size: Rows a step, of all processes.
        per_device_batch_size: Rows of one forward pass.
        learning_rate: Highest learning rate.
        loss: Terms and their weights, such as ``{"kl": 1, "task": 0.5}``.
        matching: Share of the budget that first matches each attention block to the teacher's.
        train: ``all``, ``attention``, ``kv`` or ``lora``.
        mixed_precision: ``no``, ``bf16`` or ``fp16``.
        stop_within: Stop once the held-out loss is within this share of the teacher's.
        seed: Seed of everything drawn at random.
        run_folder: Folder of checkpoints and metrics; by default ``out`` with ``-run`` behind its name.
        resume: Resume the run in the run folder, with the settings it began with.
        overwrite: Replace an earlier run and its result.
        any_model: Train a folder that is no output of ours.
        report_to: Trackers of Accelerate, such as ``tensorboard`` or ``wandb``.
        watch: Called with the metrics of every step; with ``{"note": ...}`` for what a user should know.
        **others: Any other setting.

    Returns:
        JSON data: the folder and what training did.

    Raises:
        GqkvaError: With a message for the user; nothing is written under ``out`` then.
        KeyboardInterrupt: It was stopped, after a checkpoint.
    """
    given = locals()
    return _train(
        folder,
        out,
        settings,
        given,
        run_folder=run_folder,
        resume=resume,
        overwrite=overwrite,
        any_model=any_model,
        report_to=report_to,
        watch=watch,
    )


def pretrain(
    folder: str | Path,
    out: str | Path | None = None,
    settings: TrainingSettings | str | Path | None = None,
    *,
    data: str | Path | None = None,
    held_out: str | Path | None = None,
    column: Sequence[str] | None = None,
    tokens: int | str | None = None,
    samples: int | str | None = None,
    length: int | None = None,
    batch_size: int | None = None,
    per_device_batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    run_folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report_to: Sequence[str] = (),
    watch: Watch | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Train a model of `init` from scratch; arguments and result are those of `uptrain`, without a teacher.

    Raises:
        TrainingError: The settings name a teacher.
    """
    given = locals()
    return _train(
        folder,
        out,
        settings,
        given,
        from_scratch=True,
        run_folder=run_folder,
        resume=resume,
        overwrite=overwrite,
        any_model=True,
        report_to=report_to,
        watch=watch,
    )


def _train(
    folder: str | Path,
    out: str | Path | None,
    settings: TrainingSettings | str | Path | None,
    arguments: Mapping[str, Any],
    *,
    run_folder: str | Path | None,
    resume: bool,
    overwrite: bool,
    any_model: bool,
    report_to: Sequence[str],
    watch: Watch | None,
    from_scratch: bool = False,
) -> dict[str, Any]:
    chosen = None
    if resume:
        refuse_settings(settings, arguments)
    else:
        chosen = choose_settings(settings, arguments)
        if from_scratch and chosen.teacher is not None:
            raise TrainingError("pretrain has no teacher; to learn from one, use uptrain with --any-model")
    named, suffix = Path(folder).resolve(), "pretrained" if from_scratch else "uptrained"
    out = named.with_name(f"{named.name}-{suffix}") if out is None else Path(out).absolute()
    path = out.with_name(f"{out.name}-run") if run_folder is None else Path(run_folder).absolute()
    run = RunFolder(path)
    for written in (out, path):
        clear_lock(written)
    stored = run.settings() if resume else {}
    any_model = any_model or stored.get("any_model", False)
    is_named = not named.exists() and (any_model or str(folder) == BUILT_IN)
    folder = locate(str(folder)).folder if is_named else named
    checkpoint = open_checkpoint(folder)
    carried_files(folder, checkpoint.files)  # refused before anything is computed
    require_loadable(checkpoint, family_of(checkpoint.config, folder))
    if not any_model and not (folder / REPORT).is_file():
        raise CheckpointError(
            f"{folder} is no output of `gqkva convert` (it has no {REPORT}); give one, or --any-model"
        )
    for written in (out, path):
        if written.resolve().is_relative_to(folder):
            raise OutputError(f"{written} lies inside {folder}, which is read; choose a place beside it")
    if resume:
        if not isinstance(stored.get("settings"), dict):
            raise TrainingError(f"{path}: its settings are damaged; start anew with --overwrite")
        report_to = report_to or tuple(stored.get("report_to", ()))
        if "finished" in stored:
            run.clear_checkpoints()
            raise TrainingError(
                f"the run in {path} is finished; its result was written to {stored['finished']}"
            )
        chosen = make_settings(stored["settings"], str(path))
        overwrite, from_scratch = (
            overwrite or stored.get("overwrite", False) or _is_result_of(run, out),
            stored.get("from_scratch", False),
        )
    assert chosen is not None
    # Paths mean the same from every folder then, for whoever resumes the run.
    read = {name: getattr(chosen, name) for name in _READ}
    chosen = chosen.model_copy(update={name: everywhere(value) for name, value in read.items() if value})
    _spare_what_is_read(chosen, out, path)
    check_target(out, overwrite=overwrite)
    from gqkva_convert.uptraining.run import Run

    job = Job(
        folder,
        out,
        run,
        chosen,
        tuple(report_to),
        watch or (lambda entry: None),
        from_scratch=from_scratch,
        resume=resume,
        overwrite=overwrite,
    )
    return Run(job).go()


def _is_result_of(run: RunFolder, out: Path) -> bool:
    """Return whether a folder is a run's own result: the run was killed before it could note that."""
    try:
        training = read_training(out)
    except GqkvaError:
        return False
    return training is not None and training.metrics == str(run.path / METRICS)


def _spare_what_is_read(settings: TrainingSettings, *written: Path) -> None:
    """Refuse places that would replace what is read.

    Raises:
        OutputError: One would.
    """
    for name in _READ:
        value = getattr(settings, name)
        place = DataName.read(str(value)).path
        if not value or not exists(place):
            continue
        read = place.resolve()
        for place in written:
            if read.is_relative_to(place.resolve()):
                raise OutputError(
                    f"{place} would replace {value}, which is read as {name}; choose another place"
                )
            is_checkpoint = (read / "config.json").is_file()
            if name == "teacher" and is_checkpoint and place.resolve().is_relative_to(read):
                raise OutputError(f"{place} lies inside {value}, which is read; choose a place beside it")
