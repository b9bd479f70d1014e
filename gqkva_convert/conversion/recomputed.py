"""Every tensor of an output once more from its source: copies to the byte, merges to rounding."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import numpy as np

from gqkva_convert.checkpoint.header import StoredTensor
from gqkva_convert.checkpoint.reader import Bytes, TensorReader
from gqkva_convert.conversion.proof import Proof
from gqkva_convert.plans.plan import Plan
from gqkva_convert.progress import Progress
from gqkva_convert.records.report import Report
from gqkva_convert.source.model import SourceModel
from gqkva_convert.steps.compute import step_bytes
from gqkva_convert.steps.make import make_steps
from gqkva_convert.steps.merged_blocks import MergedBlocks
from gqkva_convert.steps.others import tied_copies
from gqkva_convert.steps.step import Step
from gqkva_convert.transforms.merge import RULES
from gqkva_convert.transforms.precision import STORED, decode

CHUNK_BYTES = 4 << 20
_TINY = float(np.finfo(np.float64).tiny)
# Another processor's matrix products round otherwise, so that some merged values lie on the other side of a
# border between two stored ones: differences relative to a whole tensor.
_ROUNDING = {"BF16": 1e-3, "F16": 1e-3, "F32": 1e-5, "F64": 1e-9}


def check_recomputed(
    proof: Proof, model: SourceModel, source: SourceModel, plan: Plan, report: Report, advance: Progress
) -> None:
    """Compare every tensor with what the source and the plan give.

    Copies must be equal to the byte. So are merges by the machine that made them; elsewhere they may differ
    by the rounding of matrix products, which the check says. What calibration data decided is compared with
    its checksum in the report.
    """
    steps = make_steps(source, plan, tied_copies(source)).steps
    fixed = {name: tensor.sha256 for name, tensor in report.tensors.items()}
    wrong, differences, from_data = [], [], 0
    with (
        source.checkpoint.reader() as reader,
        MergedBlocks(reader) as merged,
        model.checkpoint.reader() as output,
    ):
        for step in steps:
            stored = model.checkpoint.tensors.get(step.name)
            if stored is None or (stored.dtype, stored.shape) != (step.dtype, step.shape):
                wrong.append(step.name)
                continue
            if _needs_data(step, plan):
                from_data += 1
                data = output.read(stored)
                advance(data.nbytes)
                is_right = hashlib.sha256(data.tobytes()).hexdigest() == fixed.get(step.name)
            else:
                apart = _difference(step, stored, output, _recomputed(step, plan, reader, merged), advance)
                is_right = apart <= (0 if step.merge is None else _ROUNDING.get(step.dtype, 0))
                if apart and is_right:
                    differences.append(apart)
            if not is_right:
                wrong.append(step.name)
    wrong += sorted(model.checkpoint.tensors.keys() - {step.name for step in steps})
    copied = sum(step.is_copy for step in steps)
    detail = f"{copied} tensors copied and {len(steps) - copied - from_data} computed, all equal to the byte"
    if differences:
        detail += (
            f" but for {len(differences)}, which differ by rounding, as on another machine "
            f"(at most {max(differences):.1e} of a tensor)"
        )
    if from_data:
        detail += f"; {from_data} merged with calibration data, as recorded when converted (not recomputed)"
    failure = f"{len(wrong)} tensors differ, {wrong[0]} first" if wrong else None
    proof.add("recomputed from the source", failure, detail)


def _needs_data(step: Step, plan: Plan) -> bool:
    """Return whether recomputing a tensor takes more than the source's weights."""
    if step.merge is None or plan.calibration is None:
        return False
    rules = {*step.merge.rules.scores, *step.merge.rules.values}
    return bool(plan.refine) or not all(RULES[rule].ignores_data for rule in rules)


def _recomputed(
    step: Step, plan: Plan, reader: TensorReader, merged: MergedBlocks
) -> Iterable[tuple[int, Bytes]]:
    """Return a tensor's bytes as the source and the plan give them, in pieces with their offsets."""
    if not step.is_copy:
        return step_bytes(step, plan.merge, plan.seed, reader, merged)
    return (
        (start, reader.read(step.source, start, min(CHUNK_BYTES, step.nbytes - start)))
        for start in range(0, step.nbytes, CHUNK_BYTES)
    )


def _difference(
    step: Step,
    stored: StoredTensor,
    output: TensorReader,
    pieces: Iterable[tuple[int, Bytes]],
    advance: Progress,
) -> float:
    """Return how far a tensor is from its recomputed pieces: 0 where all bytes are equal.

    Of a merge it is the norm of the difference over that of the tensor, of all else infinite.
    """
    apart = size = 0.0
    for start, data in pieces:
        found = output.read(stored, start, data.nbytes)
        advance(data.nbytes)
        is_same = bool((found == data).all())
        if step.merge is None:
            apart = apart if is_same else math.inf
            continue
        values, wanted = (
            decode(part.view(STORED[step.dtype]), step.dtype).astype(np.float64) for part in (found, data)
        )
        size += float(np.vdot(wanted, wanted))
        # Bytes that differ are never no difference: 0 and -0.
        apart += 0.0 if is_same else max(float(np.square(values - wanted).sum()), _TINY)
    return math.sqrt(apart / max(size, _TINY))
