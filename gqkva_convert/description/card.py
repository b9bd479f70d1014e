"""The model card: metadata for the Hub, and a description of the folder."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqkva_convert._version import __version__
from gqkva_convert.checkpoint.sidecars import EVALUATION
from gqkva_convert.data.names import short_name
from gqkva_convert.description.facts import Facts, is_newer
from gqkva_convert.description.plots import ERRORS, HEADS, QUALITY, caption
from gqkva_convert.description.prose import folder_text
from gqkva_convert.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

# Settings that tell measurements on one data set apart.
_HOW = ("samples", "length", "stride", "num_fewshot", "seed")
_MARK = re.compile(r"\n<!-- Written by gqkva (\S+), sha256 ([0-9a-f]{64}) -->\s*\Z")


def model_card(folder: str | Path, *, repo_id: str | None = None) -> ModelCard:
    """Write the card of a converted folder from its report and measurements.

    Args:
        folder: Output of `convert`, `export` or `uptrain`.
        repo_id: Repository to publish it in; by default the card uses the folder's name.

    Returns:
        A card with ``model-index`` metadata; ``str()`` of it is the text of README.md.

    Raises:
        GqkvaError: The folder or one of its files cannot be read; says which.
    """
    from huggingface_hub import ModelCard

    facts = Facts(Path(folder), repo_id)
    text = folder_text(facts, _shown(facts))
    content = f"---\n{_metadata(facts).to_yaml(line_break=None)}\n---\n\n{text}\n"
    return ModelCard(f"{content}{_mark(content)}")


def _shown(facts: Facts) -> dict[str, str]:
    """Return captions of the folder's plots by `gqkva report` that add to the text, by file name."""
    there = [file for file in (HEADS, ERRORS, QUALITY) if (facts.folder / file).is_file()]
    if QUALITY in there and is_newer(facts.folder / EVALUATION, facts.folder / QUALITY):
        there.remove(QUALITY)  # of an earlier measurement
    return {file: caption(file, facts.other_of(file)) for file in there}


def is_ours(content: str) -> bool:
    """Return whether `model_card` wrote a card that is unchanged since."""
    content = content.replace("\r\n", "\n")
    found = _MARK.search(content)
    return found is not None and _digest(content[: found.start()]) == found[2]


def read_card(path: Path) -> str:
    """Read the text of a card.

    Raises:
        CheckpointError: It is not text, or its front matter is not what the Hub takes.
    """
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    # It would warn of a card without front matter.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        text = path.read_text(encoding="utf-8-sig")
        ModelCard(text)
    except (OSError, ValueError, TypeError, YAMLError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path} is no model card: {reason[0]}; mend or remove it") from error
    return text


def _mark(content: str) -> str:
    return f"\n<!-- Written by gqkva {__version__}, sha256 {_digest(content)} -->\n"


def _digest(content: str) -> str:
    return hashlib.sha256(content.strip().encode()).hexdigest()


def _metadata(facts: Facts) -> ModelCardData:
    from huggingface_hub import ModelCardData

    base, _ = facts.base()
    results = _eval_results(facts)
    more: dict[str, Any] = {}
    if base is not None and facts.training is not None:
        more["base_model_relation"] = "finetune"
    tags = facts.stated.get("tags") or []
    kept = [tag for tag in ([tags] if isinstance(tags, str) else tags) if ":" not in tag]
    return ModelCardData(
        language=facts.stated.get("language"),
        license=facts.stated.get("license") or next(iter(facts.licence.ids), None),
        license_name=facts.licence.name,
        license_link=facts.licence.link,
        library_name="transformers",
        pipeline_tag=facts.pipeline(),
        base_model=base,
        tags=[*kept, "gqkva", "grouped-attention", *(["custom_code"] if facts.is_grouped else [])],
        model_name=facts.name if results else None,
        eval_results=results or None,
        **more,
    )


def _eval_results(facts: Facts) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    found = []
    for result in facts.evaluation.results:
        data = short_name(result.data)
        how = {name: value for name, value in (result.settings or {}).items() if name in _HOW}
        is_source = facts.beside(result.against) == "original"
        found += [
            EvalResult(
                task_type=result.hub_task,
                task_name=result.task,
                dataset_type=_slug(data),
                dataset_name=data,
                dataset_split=result.split,
                metric_args={name: value for name, value in how.items() if value is not None} or None,
                metric_type=_slug(metric.metric),
                metric_name=metric.metric,
                metric_value=metric.value,
            )
            for metric in result.metrics
            if is_source or not result.is_comparison(metric)
        ]
    return found


def _slug(text: str) -> str:
    """Return a name in the form that the Hub's metadata takes."""
    return re.sub(r"[^\w./-]+", "-", text.strip()).strip("-").lower() or "unknown"
