"""The checks of `verify` that run a model: the tied-heads control, loading, logits, modules."""

from __future__ import annotations

import gc
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gqkva_convert.checkpoint.digest import file_sha256
from gqkva_convert.checkpoint.folder import SAFETENSORS
from gqkva_convert.conversion.excerpt import excerpt_plan, reversed_plan, write_excerpt
from gqkva_convert.conversion.proof import Proof
from gqkva_convert.conversion.written import add_files_beside, auto_class, check_modules
from gqkva_convert.errors import OutputError
from gqkva_convert.modeling.loading import example_inputs, load_model, main_output
from gqkva_convert.modeling.log_levels import quiet_transformers
from gqkva_convert.plans.plan import BlockPlan, Plan
from gqkva_convert.source.deci import is_deci
from gqkva_convert.source.model import SourceModel, open_model
from gqkva_convert.steps.make import make_steps
from gqkva_convert.transforms.merge import RULES

# float32 bytes of weights that these checks may load; a larger model is cut to a few layers.
MAX_RUN_BYTES = 2 << 30
# Largest difference of logits, relative to the largest logit: float32 sums in another order.
TOLERANCE = 1e-4
# The same for heads rewritten in a dtype: its rounding, through all layers.
TIED_TOLERANCE = {"F64": 1e-4, "F32": 1e-4, "F16": 0.01, "BF16": 0.05}


def check_logits(
    proof: Proof, model: SourceModel, plan: Plan, layers: int | None, beside: Path | None = None
) -> None:
    """Run an output against the plan applied in memory, on all of its layers or a few.

    Every head of the source's architecture gets the merged head it reads under the plan. That model must
    merge back to the output's bytes, and compute what the output computes. The output is the folder itself,
    loaded with an Auto class as its users do; where that is too large, some of its layers with all of its
    other files.

    Args:
        proof: Gets what was found.
        model: The output.
        plan: Its plan.
        layers: Layers to run; None for the largest number that fits.
        beside: Folder with the source's tokenizer and modules; None for the output's own.

    Raises:
        OutputError: There is no room for the scratch copies of those layers.
    """
    chosen = _layers_to_run(model, layers)
    total = 1 + max(block.layer for block in model.blocks)
    which = (
        f"layers {', '.join(map(str, chosen))} of {total}" if len(chosen) < total else f"all {total} layers"
    )
    try:
        with TemporaryDirectory(prefix="gqkva-verify-") as scratch:
            _check_excerpt(proof, model, plan, chosen, which, Path(scratch), beside)
    except OSError as error:
        raise OutputError(
            f"no scratch space for the logit checks in {tempfile.gettempdir()}: {error.strerror or error}; "
            "set TMPDIR to a folder with more room"
        ) from error


def _check_excerpt(
    proof: Proof,
    model: SourceModel,
    plan: Plan,
    chosen: list[int],
    which: str,
    scratch: Path,
    beside: Path | None,
) -> None:
    output, expanded, again = (scratch / name for name in ("output", "expanded", "again"))
    here, everything = excerpt_plan(plan, chosen), range(len(chosen))
    same = _unchanged_plan(plan)
    write_excerpt(model, same, make_steps(model, same), chosen, output)
    output_model, back = open_model(output), reversed_plan(here)
    write_excerpt(output_model, back, make_steps(output_model, back), everything, expanded)
    written, what, loader = _written(model, output, is_whole=which.startswith("all"))
    ours, load_failure = _logits(written, model.family.architecture, loader)
    reference, source_failure = _logits(expanded, model.family.architecture)
    failure = load_failure or source_failure
    _check_tied_heads(proof, plan, here, ours, (output, expanded, again), which, model.family.architecture)
    proof.add(
        "loads in transformers",
        failure,
        f"{what}: no missing, unexpected or resized tensor ({which})",
    )
    if failure is None:
        difference = _difference(ours, reference)
        proof.add(
            "logits",
            None if difference <= TOLERANCE else f"differ by {difference:.1e} of the largest logit",
            f"within {difference:.1e} of the largest of the plan applied in memory ({which})",
        )
        check_modules(proof, model.checkpoint.folder, written, expanded, beside, which)


def _written(model: SourceModel, excerpt: Path, *, is_whole: bool) -> tuple[Path, str, Any]:
    """Return the folder to load, what that is, and the class to load it with.

    It is the output's own, or an excerpt with its other files.
    """
    if is_deci(model.config):
        return excerpt, "its weights as a Mistral, for transformers has no DeciLM", None
    auto, loader = auto_class(model)
    if is_whole:
        return model.checkpoint.folder, f"the folder with {auto}", loader
    add_files_beside(model.checkpoint.folder, excerpt)
    return excerpt, f"some layers with the folder's other files, with {auto}", loader


def _check_tied_heads(
    proof: Proof, plan: Plan, here: Plan, ours: Any, folders: tuple[Path, Path, Path], which: str, name: str
) -> None:
    """Merge heads that already agree: most rules must change no byte, joint ones no logit."""
    output, expanded, again = folders
    check = "tied-heads control"
    if RULES[plan.merge].starts_afresh:
        proof.add(check, None, "not applicable: random heads are new")
        return
    expanded_model, tied = open_model(expanded), replace(here, dtype=None)
    everything = range(1 + max(block.layer for block in here.blocks))
    write_excerpt(expanded_model, tied, make_steps(expanded_model, tied), everything, again)
    if not RULES[plan.merge].is_joint:
        equal = file_sha256(again / SAFETENSORS) == file_sha256(output / SAFETENSORS)
        proof.add(
            check,
            None if equal else "merging heads that already agree changed them",
            f"merging heads that already agree gives every byte back ({which})",
        )
        return
    merged, failure = _logits(again, name)
    if failure is None and ours is not None:
        difference = _difference(merged, ours)
        dtypes = {tensor.dtype for tensor in expanded_model.checkpoint.tensors.values()}
        limit = max(TIED_TOLERANCE.get(dtype, 0) for dtype in dtypes)
        if difference > limit:
            failure = f"merging heads that already agree changed a logit by {difference:.1e} of the largest"
        proof.add(
            check, failure, f"merging heads that already agree changes logits by {difference:.1e} ({which})"
        )
    else:
        proof.add(check, failure or "the output itself does not run", "")


def _difference(one: Any, other: Any) -> float:
    """Return the largest difference relative to the largest absolute value of the second."""
    return float((one - other).abs().max()) / max(float(other.abs().max()), 1e-30)


def _layers_to_run(model: SourceModel, layers: int | None) -> list[int]:
    """Choose evenly spread layers: the requested number, or the largest that fits."""
    total = 1 + max(block.layer for block in model.blocks)
    if layers is None:
        tensors, nbytes = model.checkpoint.tensors, model.checkpoint.nbytes
        inside = sum(tensor.nbytes for name, tensor in tensors.items() if model.find_layer(name))
        width = 4 / (nbytes / max(1, sum(math.prod(tensor.shape) for tensor in tensors.values())))
        outside = nbytes - inside
        layers = int((MAX_RUN_BYTES / width - outside) // max(1, inside // total))
    count = max(1, min(total, layers))
    if count == 1:
        return [0]
    return sorted({round(place * (total - 1) / (count - 1)) for place in range(count)})


def _unchanged_plan(plan: Plan) -> Plan:
    """Return a plan that leaves the output's heads as they are."""
    blocks = tuple(BlockPlan.unchanged(block.place, block.target) for block in plan.blocks)
    return Plan(plan.variant, "neighbour", "mean", 0, None, blocks)


def _logits(folder: Path, fallback: str, loader: Any = None) -> tuple[Any, str | None]:
    """Return a model's float32 logits for fixed inputs, or the error of loading or running it.

    It is loaded with ``loader`` where one is given, and otherwise with the class its configuration names.
    """
    import torch

    quiet_transformers()
    try:
        network = load_model(folder, fallback, loader=loader)
        with torch.inference_mode():
            output = network(**example_inputs(network))
        logits = main_output(output)
    except Exception as error:  # whatever transformers raises for a model it cannot build or run
        return None, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    del network, output
    gc.collect()
    return logits, None
