"""The report of a conversion: what was done to every tensor."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path

from gqkva_convert.checkpoint.folder import Checkpoint
from gqkva_convert.plans.plan import Plan
from gqkva_convert.records.environment import versions
from gqkva_convert.records.family_proof import FamilyProof
from gqkva_convert.records.report import Report, Source, Tensor, describe_files
from gqkva_convert.steps.step import Step, Steps, describe


def make_report(
    command: Sequence[str],
    source: Source,
    output: Checkpoint,
    plan: Plan,
    steps: Steps,
    left_behind: dict[str, str],
    parameters: int,
    timings: dict[str, float],
    proof: FamilyProof | None = None,
) -> Report:
    """Report a conversion: all that a reader needs to know, or to make the same output again."""
    report = Report(
        format_version=1,
        versions=versions(),
        command=list(command),
        source=source,
        plan=plan.to_dict(),
        steps=describe(steps),
        tensors={
            step.name: Tensor(operation=step.operation, sources=step_sources(step))
            for step in steps.steps
            if not step.is_copy
        },
        dropped=steps.dropped,
        config=output.config,
        files=describe_files(output),
        files_left_behind=left_behind,
        bytes=steps.nbytes,
        parameters=parameters,
        seconds={name: round(seconds, 3) for name, seconds in timings.items()},
        verification=None,
    )
    return report if proof is None else report.model_copy(update={"family_proof": proof})


def step_sources(step: Step) -> list[str]:
    """Return the names of the source tensors that a step reads."""
    names = dict.fromkeys(piece.tensor.name for head in step.heads for piece in head.pieces)
    return list(names) or [step.source.name]


def provenance(source: Source, plan: Plan) -> dict[str, str]:
    """Return the metadata in the header of every weight file."""
    summary = {
        "version": importlib.metadata.version("gqkva-convert"),
        "source": source.name if source.revision else Path(source.name).name,
        "revision": source.revision,
        "variant": plan.variant,
        "grouping": plan.grouping,
        "merge": plan.merge,
        "seed": plan.seed,
    }
    # transformers refuses files that do not say they were written for PyTorch.
    return {"format": "pt", "gqkva": json.dumps(summary)}
