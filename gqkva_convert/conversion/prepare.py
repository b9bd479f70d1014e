"""A conversion planned, checked and divided into files; nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.hub import Located, locate, peek
from gqkva_convert.checkpoint.sidecars import carried_files
from gqkva_convert.derivation.licence import check_plan, licence_of, licensed_request
from gqkva_convert.errors import OutputError, UsageError
from gqkva_convert.planning.choose import complete_plan, request_plan
from gqkva_convert.plans.config import converted_config
from gqkva_convert.plans.file import read_plan
from gqkva_convert.plans.plan import Plan
from gqkva_convert.plans.request import Request
from gqkva_convert.progress import Stages, no_stages
from gqkva_convert.records.family_proof import FamilyProof
from gqkva_convert.refinement.calibrated import CalibratedModel
from gqkva_convert.source.model import SourceModel, open_model, read_model
from gqkva_convert.source.stock import require_loadable
from gqkva_convert.source.tensors import count_parameters, source_parameters
from gqkva_convert.steps.make import make_steps
from gqkva_convert.steps.others import tied_copies
from gqkva_convert.steps.shards import Shard, make_shards, parse_size
from gqkva_convert.steps.step import Steps


@dataclass(frozen=True)
class Draft:
    """A plan that has been checked against its source: every tensor accounted for, a configuration found."""

    plan: Plan
    steps: Steps
    config: dict[str, Any]


def make_draft(model: SourceModel, plan: Plan, tied: dict[str, str]) -> Draft:
    """Check a plan against its source; reads no weights.

    Raises:
        GqkvaError: The plan does not fit the source, or no class can hold the result.
    """
    return Draft(plan, make_steps(model, plan, tied), converted_config(model, plan))


@dataclass(frozen=True)
class Conversion:
    """A conversion ready to be written; plain data, nothing is on disk yet.

    Attributes:
        located: The source.
        model: Its checkpoint and facts.
        config: The configuration of the result.
        calibrated: The source with its calibration data, where the plan uses any.
        command: The arguments of ``gqkva`` that ask for this conversion.
        proof: The proof of the family's table, where that is a generated one.
    """

    located: Located
    model: SourceModel
    plan: Plan
    steps: Steps
    config: dict[str, Any]
    shards: tuple[Shard, ...]
    target: Path
    calibrated: CalibratedModel | None = None
    command: tuple[str, ...] = ()
    proof: FamilyProof | None = None

    @property
    def parameters(self) -> int:
        """Return the number of weights of the result."""
        return count_parameters(self.model, ((step.name, step.shape) for step in self.steps.steps))

    def to_dict(self) -> dict[str, Any]:
        """Return the whole conversion as JSON data, for `--dry-run --json`."""
        return {
            "source": self.located.name,
            "target": str(self.target),
            "plan": self.plan.to_dict(),
            "shards": {
                shard.file_name: [
                    {
                        "name": step.name,
                        "operation": step.operation,
                        "dtype": step.dtype,
                        "shape": list(step.shape),
                    }
                    for step in shard.steps
                ]
                for shard in self.shards
            },
            "dropped": self.steps.dropped,
            **({} if self.proof is None else {"family_proof": self.proof.to_dict()}),
            "bytes": self.steps.nbytes,
            "parameters": self.parameters,
            "source_bytes": self.model.checkpoint.nbytes,
            "source_parameters": source_parameters(self.model),
        }


def prepare(
    model: str | Path,
    out: str | Path | None = None,
    *,
    request: Request | None = None,
    plan: str | Path | None = None,
    max_shard_size: str | None = None,
    revision: str | None = None,
    stages: Stages = no_stages,
) -> Conversion:
    """Plan a conversion without writing anything; takes the arguments of `convert`, or a request."""
    if (request is None) == (plan is None):
        raise UsageError("give either a plan or what to plan, --gkv for instance; not both")
    max_shard_bytes = parse_size(max_shard_size) if max_shard_size else None

    def first_draft(source: SourceModel, tied: dict[str, str], proof: FamilyProof | None) -> Draft:
        if request is not None:
            asked = request_plan(source, licensed_request(request, proof))
        else:
            asked = read_plan(Path(str(plan)), source)
        check_plan(asked, proof)
        draft = make_draft(source, asked, tied)
        require_loadable(source.checkpoint, source.family)
        return draft

    headers = peek(str(model), revision)
    if headers is not None:
        # Refused before the download. Steps name files and offsets, which are here only after it.
        remote = read_model(headers)
        first_draft(remote, {}, licence_of(remote))
    located = locate(str(model), revision)
    source = open_model(located.folder)
    tied = tied_copies(source)
    proof = licence_of(source)
    draft = first_draft(source, tied, proof)  # refused before the data are looked at
    request = None if request is None else licensed_request(request, proof)
    chosen, calibrated, _ = complete_plan(located, source, draft.plan, request, stages)
    if chosen != draft.plan:
        draft = make_draft(source, chosen, tied)
    target = Path(out) if out is not None else Path(f"{_base_name(located)}-{chosen.variant}")
    wished = ["--plan", str(plan)] if request is None else request.arguments()
    wished += ["--max-shard-size", max_shard_size] if max_shard_size else []
    wished += ["--revision", located.revision] if located.revision else []
    command = ("convert", located.name, str(target), *wished)
    planned = plan_shards(located, source, draft, target, max_shard_bytes, calibrated, command)
    return replace(planned, proof=proof)


def plan_shards(
    located: Located,
    source: SourceModel,
    draft: Draft,
    target: Path,
    max_shard_bytes: int | None,
    calibrated: CalibratedModel | None = None,
    command: tuple[str, ...] = (),
) -> Conversion:
    """Return a checked plan with its output files; writes nothing.

    Raises:
        OutputError: The target is or holds the source.
    """
    shards = make_shards(draft.steps, source.checkpoint.files, max_shard_bytes)
    carried_files(located.folder, source.checkpoint.files)  # refused before anything is computed
    if target.resolve() == located.folder.resolve() or target.resolve() in located.folder.resolve().parents:
        raise OutputError(f"{target} is or holds the source; choose another folder")
    parts = draft.plan, draft.steps, draft.config
    return Conversion(located, source, *parts, shards, target, calibrated, command)


def _base_name(located: Located) -> str:
    return located.folder.resolve().name if located.revision is None else located.name.rpartition("/")[2]
