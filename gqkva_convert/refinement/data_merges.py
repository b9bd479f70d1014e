"""Calibration data of a conversion that is being written, and its entry in the report."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from gqkva_convert.checkpoint.folder import Checkpoint
from gqkva_convert.checkpoint.reader import TensorReader
from gqkva_convert.plans.plan import Plan
from gqkva_convert.progress import Stages
from gqkva_convert.records.report import Calibration, Report
from gqkva_convert.refinement.calibrated import CalibratedModel
from gqkva_convert.steps.merged_blocks import MergedBlocks

if TYPE_CHECKING:
    from gqkva_convert.refinement.fitted import FittedBlocks


class DataMerges:
    """Measured moments and refined heads of a conversion; empty where it uses no data.

    Args:
        plan: The conversion's plan.
        calibrated: The source with its data, if any.
    """

    def __init__(self, plan: Plan, calibrated: CalibratedModel | None) -> None:
        self.plan = plan
        self.calibrated = calibrated
        self.fits: FittedBlocks | None = None
        self.errors: dict[str, dict[str, float]] = {}

    def prepare(self, stages: Stages) -> None:
        """Refine the merged heads if the plan asks for it."""
        if self.calibrated is None or not self.plan.refine:
            return
        from gqkva_convert.refinement.fitted import FittedBlocks
        from gqkva_convert.refinement.layerwise import FitSettings

        self.fits = FittedBlocks(self.plan, self.calibrated, FitSettings(seed=self.plan.seed))
        self.errors = self.fits.fit(stages)

    def merged(self, reader: TensorReader) -> MergedBlocks:
        """Return the merged blocks for writing."""
        if self.calibrated is None:
            return MergedBlocks(reader)
        if self.fits is None:
            return MergedBlocks(reader, self.calibrated.measured)
        return MergedBlocks(reader, self.calibrated.measured, self.fits.heads)

    def noted(self, report: Report, output: Checkpoint) -> Report:
        """Return the report with the calibration data and checksums of tensors that depend on it."""
        if self.calibrated is None:
            return report
        learned, held = self.calibrated.batches
        first = next(iter(learned[0]))
        calibration = Calibration(
            sha256=self.calibrated.key,
            samples=sum(len(batch[first]) for batch in learned),
            held_out_samples=sum(len(batch[first]) for batch in held),
            held_out_error=self.errors,
            **({} if self.calibrated.reading is None else {"reading": self.calibrated.reading.to_dict()}),
        )
        tensors = dict(report.tensors)
        with output.reader() as reader:
            for name, tensor in tensors.items():
                if tensor.operation == "merge":
                    data = reader.read(output.tensors[name])
                    sha256 = hashlib.sha256(data.tobytes()).hexdigest()
                    tensors[name] = tensor.model_copy(update={"sha256": sha256})
        return report.model_copy(update={"calibration": calibration, "tensors": tensors})

    def clear(self) -> None:
        """Remove what is not needed once the conversion is written."""
        if self.calibrated is not None:
            self.calibrated.close()
        if self.fits is not None:
            self.fits.clear()
