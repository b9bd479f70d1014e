"""Facts about a converted folder: recorded by its report, measured, or stated of its source."""

from __future__ import annotations

import re
from pathlib import Path

from gqkva_convert.checkpoint.digest import files_sha256
from gqkva_convert.checkpoint.sidecars import BENCH, BENCH_PICTURE, EVALUATION
from gqkva_convert.data.names import short_name
from gqkva_convert.description.licences import FoundLicence, find_licence
from gqkva_convert.errors import CheckpointError
from gqkva_convert.modeling.families import GROUPED_FAMILIES
from gqkva_convert.plans.plan import Plan
from gqkva_convert.records.bench import Bench, read_bench
from gqkva_convert.records.evaluation import Evaluation, read_evaluation
from gqkva_convert.records.report import Report, read_report
from gqkva_convert.records.source_card import stated_card
from gqkva_convert.source.caches import cache_bytes
from gqkva_convert.source.config_keys import is_grouped
from gqkva_convert.source.model import SourceModel, open_model

# What the classes that an Auto class gives are for, as the Hub calls it, where that is one thing. The first
# Auto class that gives a folder's class is the one to load it with.
_PIPELINES: dict[str, str | None] = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSpeechSeq2Seq": "automatic-speech-recognition",
    "AutoModelForSeq2SeqLM": None,
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForZeroShotImageClassification": "zero-shot-image-classification",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForAudioClassification": "audio-classification",
}
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})(?:/|$)")


def is_newer(file: Path, than: Path) -> bool:
    """Return whether a file exists and was written after another."""
    return file.is_file() and file.stat().st_mtime > than.stat().st_mtime


class Facts:
    """All facts about a folder, read once.

    Args:
        folder: Output of `convert`, `export` or `uptrain`.
        repo_id: Repository to publish it in; by default it is called by its folder's name.

    Raises:
        GqkvaError: The folder or one of its files cannot be read; says which.
    """

    def __init__(self, folder: Path, repo_id: str | None) -> None:
        self.folder = folder
        self.report: Report = read_report(folder)
        self.address = repo_id or folder.resolve().name
        self.name = self.address.rpartition("/")[2]
        self.model: SourceModel = open_model(folder)
        self.plan = Plan.from_report(self.report, self.model)
        self.source = self.report.source
        self.evaluation = read_evaluation(folder) or Evaluation(format_version=1, results=[])
        self.bench: Bench | None = read_bench(folder)
        self._require_current()
        self.stated = stated_card(self.source.card)
        self.licence: FoundLicence = find_licence(self.stated, folder)
        self.training = self.report.uptraining
        self.is_grouped = is_grouped(self.model.config)

    def _require_current(self) -> None:
        """Refuse to tell what was measured of other weights.

        Raises:
            CheckpointError: The weights have changed since.
        """
        measured = {
            (EVALUATION, "evaluate"): [each.model_sha256 for each in self.evaluation.results],
            (BENCH, "bench"): [self.bench.model_sha256] if self.bench else [],
        }
        known = {place: set(found) - {None} for place, found in measured.items()}
        if not any(known.values()):
            return
        current = files_sha256({file.name: file for file in self.model.checkpoint.files})
        for (file, command), found in known.items():
            if found - {current}:
                raise CheckpointError(
                    f"{self.folder / file} was measured of other weights than are there; remove it or "
                    f"measure again with gqkva {command}"
                )

    def beside(self, *against: str | None) -> str:
        """Name the models that this one was measured beside: ``original`` if they are its source."""
        originals = {short_name(name) for name in (self.source.name, self.base()[0]) if name}
        others = {short_name(name) for name in against if name}
        return "original" if others <= originals else " or ".join(sorted(others))

    def other_of(self, plot: str) -> str:
        """Name the other model in a plot."""
        if plot == BENCH_PICTURE:
            return self.beside(self.bench.against if self.bench else None)
        return self.beside(*(result.against for result in self.evaluation.results))

    def base(self) -> tuple[str | None, str | None]:
        """Return the Hub id and commit of the model that this was made from, where they are recorded."""
        origin = self.stated.get("origin") or {}
        made_from = (self.source.name, self.source.revision), (origin.get("name"), origin.get("revision"))
        for name, revision in made_from:
            name = str(name or "")
            cached = _CACHED.search(name)
            if cached is not None:
                return f"{cached[1]}/{cached[2]}", cached[3]
            if revision:
                return name, str(revision)
        return None, None

    def auto_class(self) -> str | None:
        """Return the Auto class that loads the folder as the class it was saved as."""
        family = GROUPED_FAMILIES.get(self.plan.architecture or self.model.family.model_type)
        if self.model.config["model_type"] == "deci" or family is None:
            return None
        stored = self.model.classes[0]
        found = [auto for auto, names in family.auto_classes.items() if stored in names]
        usual = [auto for auto in _PIPELINES if auto in found]
        return next(iter(usual or found), None)

    def pipeline(self) -> str | None:
        stated = self.stated.get("pipeline_tag")
        if isinstance(stated, str):
            return stated
        if (self.folder / "modules.json").is_file():
            return "sentence-similarity"
        auto = self.auto_class()
        return _PIPELINES.get(auto or "", "feature-extraction" if auto == "AutoModel" else None)

    def sizes(self) -> list[tuple[str, int, int]]:
        """Return the known sizes: parameters, bytes and caches, each with its value before and after."""
        sizes = [
            ("parameters", self.source.parameters, self.report.parameters),
            ("bytes of weights", self.source.bytes, self.report.bytes),
        ]
        layouts = [[b.source for b in self.plan.blocks], [b.target for b in self.plan.blocks]]
        for cache, what in (
            ("self", "KV-cache bytes a token"),
            ("cross", "cross-cache bytes a source token"),
        ):
            before, after = (cache_bytes(self.model, layout, cache) for layout in layouts)
            if before:
                sizes.append((f"{what}, in the dtype of this model", before, after))
        return [
            (what, before, after)
            for what, before, after in sizes
            if before is not None and after is not None and before > 0
        ]

    def block_errors(self) -> dict[str, dict[int, dict[str, float]]]:
        """Return the errors of converted attention blocks by kind, layer and refinement.

        Shares of a block's output on calibration data held out; empty where heads were merged without data.
        """
        calibration = self.report.calibration
        recorded = (calibration.held_out_error if calibration is not None else None) or {}
        found: dict[str, dict[int, dict[str, float]]] = {}
        for place, errors in recorded.items():
            kind, _, layer = place.rpartition("-")
            if layer.isdigit():
                found.setdefault(kind, {})[int(layer)] = errors
        return found
