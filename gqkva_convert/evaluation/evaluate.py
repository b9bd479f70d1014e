"""`gqkva evaluate`: quality of a model, alone or beside the one it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.digest import files_sha256
from gqkva_convert.checkpoint.folder import read_config, weight_files
from gqkva_convert.checkpoint.hub import locate
from gqkva_convert.data.names import everywhere
from gqkva_convert.data.tasks import CAUSAL, EMBEDDING, IMAGES, MASKED, TEXTS, TO_TARGET
from gqkva_convert.errors import EvaluationError, is_out_of_memory
from gqkva_convert.evaluation.classification import score_labels
from gqkva_convert.evaluation.embeddings import measure_embeddings
from gqkva_convert.evaluation.masked import score_masked
from gqkva_convert.evaluation.metrics import Metric
from gqkva_convert.evaluation.perplexity import score_windows
from gqkva_convert.evaluation.samples import windows
from gqkva_convert.evaluation.settings import EvaluationSettings, choose_settings
from gqkva_convert.evaluation.subject import Subject, open_subject
from gqkva_convert.evaluation.targets import measure_targets
from gqkva_convert.progress import Stages, no_stages
from gqkva_convert.records.environment import describe_run
from gqkva_convert.records.evaluation import TITLES, Result, add_results, require_writable

# Each task's id on the Hub.
_HUB_TASKS = {
    CAUSAL: "text-generation",
    MASKED: "fill-mask",
    TO_TARGET: "text2text-generation",
    IMAGES: "image-classification",
    TEXTS: "text-classification",
    EMBEDDING: "sentence-similarity",
}
_BATCH_TOKENS = 8192
# Windows are resampled where there are fewer texts than this.
_FEW_DOCUMENTS = 30


def evaluate(
    model: str | Path,
    settings: EvaluationSettings | None = None,
    *,
    against: str | Path | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    tasks: str | Sequence[str] = (),
    num_fewshot: int | None = None,
    samples: int | None = None,
    length: int | None = None,
    stride: int | None = None,
    documents: str | None = None,
    column: Sequence[str] = (),
    assistant_only_loss: bool = False,
    batch_size: int | None = None,
    max_new_tokens: int = 128,
    seed: int = 0,
    dtype: str | None = None,
    device: str = "auto",
    save: bool = True,
    stages: Stages = no_stages,
) -> list[dict[str, Any]]:
    """Measure a model on data, on tasks of lm-evaluation-harness, or on both.

    What is measured on data depends on the model: perplexity of causal and masked language models, top-1
    and top-5 accuracy of classifiers, Spearman correlation of sentence encoders, perplexity, ROUGE and exact
    match of sequence-to-sequence models. With ``against`` every metric is given for both, with the
    difference, and the answers of both models are compared: KL divergence and agreement, or the
    cosine of embeddings. Each number has a 95 % bootstrap interval over samples; differences have paired
    ones.

    Args:
        model: A checkpoint folder or Hub id.
        settings: The options from ``data`` to ``device`` as one object, instead of them.
        against: The model it was made from, or any other that reads the same; a folder or Hub id.
        data: Data to measure on: a file, a folder, a Hub id or a short name.
        split: Part of the data; None for test, or validation where there is none.
        tasks: Tasks of lm-evaluation-harness, or YAML files of such tasks; as text with commas.
        num_fewshot: Examples before each question of a task; None for the task's own number.
        samples: Most windows of text, texts, pairs, images or questions; None for all.
        length: Tokens read at once; None for 2,048, or the model's maximum if that is less.
        stride: Tokens predicted by one window; None for ``length``, where each sees one token before it.
        documents: ``"records"``: each record is a text; ``"joined"``: all are one, line after line; None for
            joined where the data are running text (wikitext, a ``.txt`` file), else records.
        column: Columns of ``data`` to read, or ``KNOWN=NAME`` where a known column has another name.
        assistant_only_loss: Measure causal language models on answers alone: an assistant's turns,
            completions.
        batch_size: Windows, texts, pairs or images in one forward pass; None for about 8,192 tokens or 32.
        max_new_tokens: Longest text that a sequence-to-sequence model writes.
        seed: Seed of what is drawn, and of intervals.
        dtype: ``"auto"`` (as stored), ``"float32"``, ``"bfloat16"`` or ``"float16"``; None for float32 on a
            CPU, the stored one on a GPU.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or one such as ``"cuda:1"``.
        save: Whether results are kept in ``gqkva_evaluation.json`` in the model's folder, where it is one.
        stages: Begins a stage of progress.

    Returns:
        JSON data, one entry a data set or task.

    Raises:
        EvaluationError: The models cannot be measured so.
        DataError: The data cannot be used.
        GqkvaError: A folder is not a checkpoint of a known family.
    """
    chosen = choose_settings(settings, locals())
    located = locate(str(model), None)
    kept = Path(model) if save and Path(model).is_dir() else None
    if kept is not None:
        require_writable(kept)
    subject = open_subject(located.folder, None if against is None else str(against), chosen, stages)
    if chosen.tasks:
        from gqkva_convert.evaluation.harness import require_tasks

        require_tasks(subject)  # before hours on the data
    common = {
        "against": None if against is None else str(against),
        "model_sha256": files_sha256(
            {file.name: file for file in weight_files(located.folder, read_config(located.folder))[0]}
        ),
        **describe_run(),
    }
    results: list[Result] = []
    for part, asked in ((_on_data, chosen.data), (_on_tasks, chosen.tasks)):
        found = part(subject, common) if asked else []
        if kept is not None and found:
            add_results(kept, found)  # before the next part, which may fail
        results += found
    return [result.to_dict() for result in results]


def _chosen(subject: Subject, *names: str) -> dict[str, Any]:
    """Return settings by their names, and the dtype computed in."""
    dtype = str(subject.model.dtype).removeprefix("torch.")
    return {**{name: getattr(subject.settings, name) for name in names}, "dtype": dtype}


def _on_tasks(subject: Subject, common: dict[str, Any]) -> list[Result]:
    from gqkva_convert.evaluation.harness import run_tasks

    chosen = _chosen(subject, "samples", "seed", "length", "batch_size")
    return run_tasks(subject, chosen, common)


def _on_data(subject: Subject, common: dict[str, Any]) -> list[Result]:
    settings = subject.settings
    with _fitting(subject):
        metrics, samples, unit, found = _measure(subject)
    reading = found.pop("reading", None)
    task = _HUB_TASKS[subject.task]
    return [
        Result(
            task=TITLES[task],
            task_id=task,
            data=everywhere(str(settings.data)),
            split=settings.split,
            samples=samples,
            unit=unit,
            metrics=[metric.score(settings.seed) for metric in metrics],
            settings={**found, **_chosen(subject, "samples", "seed")},
            **({} if reading is None else {"reading": reading.to_dict()}),
            **common,
        )
    ]


@contextmanager
def _fitting(subject: Subject) -> Iterator[None]:
    """Raise an error with the remedy if a batch does not fit into memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise EvaluationError(
            f"a forward pass of {subject.settings.data} does not fit into memory; give a smaller "
            "--batch-size or --length"
        ) from error


def _measure(subject: Subject) -> tuple[list[Metric], int, str, dict[str, Any]]:
    if subject.settings.assistant_only_loss and subject.task != CAUSAL:
        raise EvaluationError("--assistant-only-loss is for causal language models; leave it out")
    if subject.task == CAUSAL:
        return _measure_language(subject)
    if subject.task == MASKED:
        scores, found = score_masked(subject)
        metrics = [*scores.likelihood(), scores.accuracy()[0], *scores.agreement()]
        return metrics, scores.answers, "masked tokens", found
    if subject.task == TO_TARGET:
        metrics, samples, found = measure_targets(subject)
        return metrics, samples, "texts", found
    if subject.task == EMBEDDING:
        return measure_embeddings(subject)
    scores = score_labels(subject)
    return [*scores.accuracy(), *scores.agreement()], scores.answers, f"{scores.unit}s", {}


def _measure_language(subject: Subject) -> tuple[list[Metric], int, str, dict[str, Any]]:
    settings = subject.settings
    chosen, found = windows(settings, subject.folder, subject.model)
    subject.say(found["reading"])
    tokens = sum(window.answers for window in chosen)
    batch = _BATCH_TOKENS if settings.batch_size is None else settings.batch_size * found["length"]
    progress = subject.begin(f"measuring {settings.data}", tokens)
    scores = score_windows(subject.model, subject.against, chosen, batch_tokens=batch, progress=progress)
    documents = [window.document for window in chosen]
    is_by_text = len(set(documents)) >= _FEW_DOCUMENTS
    if is_by_text:
        scores = scores.gathered(documents)
    found["resampled"] = "documents" if is_by_text else "windows"
    return [*scores.likelihood(), *scores.agreement()], tokens, "tokens", found
