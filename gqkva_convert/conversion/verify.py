"""`gqkva verify`: proof that an output is what its plan says."""

from __future__ import annotations

import datetime
import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gqkva_convert.checkpoint.dtypes import FLOATS
from gqkva_convert.checkpoint.folder import Checkpoint
from gqkva_convert.checkpoint.hub import locate
from gqkva_convert.checkpoint.jsonfile import write_json
from gqkva_convert.checkpoint.reader import TensorReader
from gqkva_convert.checkpoint.sidecars import REPORT
from gqkva_convert.conversion.compute import step_bytes
from gqkva_convert.conversion.excerpt import excerpt_plan, reversed_plan, write_excerpt
from gqkva_convert.conversion.model import SourceModel, open_model
from gqkva_convert.conversion.plan import Plan
from gqkva_convert.conversion.report import (
    count_parameters,
    describe_files,
    file_sha256,
    read_report,
    versions,
)
from gqkva_convert.conversion.steps import Step, make_steps, tied_copies
from gqkva_convert.errors import OutputError, VerificationError
from gqkva_convert.transforms.merge import RULES
from gqkva_convert.transforms.precision import STORED, is_finite

Progress = Callable[[int], None]

CHUNK_BYTES = 4 << 20
# float32 bytes of weights that the logit checks may load; a larger model is cut to a few layers.
MAX_RUN_BYTES = 2 << 30
# Largest difference of logits, relative to the largest logit: float32 sums in another order.
TOLERANCE = 1e-4


@dataclass
class Proof:
    """The checks made so far."""

    checks: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, failure: str | None, detail: str) -> None:
        """Note a check: why it failed, or None and what it found."""
        self.checks.append({"check": name, "passed": failure is None, "detail": failure or detail})

    @property
    def passed(self) -> bool:
        return all(check["passed"] for check in self.checks)


def verify(
    folder: str | Path,
    against: str | Path | None = None,
    *,
    revision: str | None = None,
    layers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prove that a converted folder is what its report says, and store the proof in the report.

    Always: files, names, shapes and dtypes; checksums; finite values; the tied-heads control (the same plan
    on weights whose heads already agree gives the same bytes back); the model loads in stock
    transformers, and its logits are those of the source's architecture with every head replaced by
    the head the plan merged it into. With ``against``, also every tensor recomputed from the source.

    Args:
        folder: Output of `convert`.
        against: The source: a folder or a Hub id.
        revision: Branch, tag or commit of a Hub id.
        layers: Layers to run in the logit checks; by default as many as fit 2 GiB in float32.
        progress: Called with the number of bytes just checked.

    Returns:
        JSON data: ``passed``, the checks with what each found, checksums.

    Raises:
        VerificationError: The folder holds no report of ours.
        GqkvaError: The folder or the source cannot be read.
    """
    folder = Path(folder)
    report = read_report(folder)
    plan = Plan.from_dict(report["plan"])
    model = open_model(folder)
    advance = progress or (lambda _: None)
    proof = Proof()
    _check_files(proof, model, plan, report)
    checksums = _check_checksums(proof, model.checkpoint, report, advance)
    _check_finite(proof, model.checkpoint, advance)
    if against is not None:
        _check_source(proof, model, plan, report, str(against), revision, advance)
    if proof.passed:
        _check_logits(proof, model, plan, layers)
    result = {
        "passed": proof.passed,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "against": None if against is None else str(against),
        "versions": versions(),
        "checks": proof.checks,
        "sha256": checksums,
    }
    _store(folder, report, result)
    return result


def verify_bytes(folder: str | Path, against: str | Path | None) -> int:
    """How many bytes `verify` will report to ``progress``, for a progress bar."""
    passes = 2 if against is None else 3
    return passes * open_model(Path(folder)).checkpoint.nbytes


def _check_files(proof: Proof, model: SourceModel, plan: Plan, report: dict[str, Any]) -> None:
    recorded = {
        name: {key: entry[key] for key in ("bytes", "tensors_sha256")}
        for name, entry in report["files"].items()
    }
    found = describe_files(model.checkpoint)
    wrong = [name for name in sorted(recorded.keys() | found.keys()) if recorded.get(name) != found.get(name)]
    proof.add(
        "files, names, shapes, dtypes",
        f"{', '.join(wrong)} differ from the report" if wrong else None,
        f"{len(found)} files, {len(model.checkpoint.tensors)} tensors as reported",
    )
    layouts = [block.layout for block in model.blocks]
    planned = [block.target for block in plan.blocks]
    proof.add(
        "configuration",
        None if layouts == planned else "config.json does not describe the plan's layouts",
        f"{plan.blocks[0].target.name} in all {len(planned)} blocks"
        if len(set(planned)) == 1
        else "as planned",
    )


def _check_checksums(
    proof: Proof, checkpoint: Checkpoint, report: dict[str, Any], advance: Progress
) -> dict[str, str]:
    earlier = (report.get("verification") or {}).get("sha256", {})
    found = {}
    for file in checkpoint.files:
        found[file.name] = file_sha256(file, advance)
    changed = [name for name, digest in earlier.items() if found.get(name) != digest]
    proof.add(
        "checksums",
        f"{', '.join(changed)} changed since the last verification" if changed else None,
        "as at the last verification" if earlier else "recorded",
    )
    return found


def _check_finite(proof: Proof, checkpoint: Checkpoint, advance: Progress) -> None:
    bad = []
    with TensorReader(checkpoint.files, pickled=False) as reader:
        for tensor in checkpoint.tensors.values():
            finite = True
            for start in range(0, tensor.nbytes, CHUNK_BYTES):
                data = reader.read(tensor, start, min(CHUNK_BYTES, tensor.nbytes - start))
                if tensor.dtype in FLOATS:
                    finite = finite and is_finite(data.view(STORED[tensor.dtype]), tensor.dtype)
                advance(data.nbytes)
            if not finite:
                bad.append(tensor.name)
    proof.add(
        "finite values", f"NaN or infinity in {', '.join(bad[:3])}" if bad else None, "no NaN, no infinity"
    )


def _check_source(
    proof: Proof,
    model: SourceModel,
    plan: Plan,
    report: dict[str, Any],
    against: str,
    revision: str | None,
    advance: Progress,
) -> None:
    source = open_model(locate(against, revision).folder)
    recorded = {
        name: (entry["bytes"], entry["tensors_sha256"]) for name, entry in report["source"]["files"].items()
    }
    found = {
        name: (entry["bytes"], entry["tensors_sha256"])
        for name, entry in describe_files(source.checkpoint).items()
    }
    proof.add(
        "source",
        None if recorded == found else f"{against} is not the checkpoint this was converted from",
        f"{against}: {len(found)} files as recorded",
    )
    if recorded != found:
        return
    with TensorReader(source.checkpoint.files, pickled=source.checkpoint.pickled) as reader:
        steps = make_steps(source, plan, tied_copies(source, reader))
        with TensorReader(model.checkpoint.files, pickled=False) as output:
            wrong = [
                step.name
                for step in steps.steps
                if not _is_recomputed(step, plan, model.checkpoint, reader, output, advance)
            ]
    names = {step.name for step in steps.steps}
    wrong += sorted(names ^ model.checkpoint.tensors.keys())
    copied = sum(step.is_copy for step in steps.steps)
    proof.add(
        "recomputed from the source",
        f"{len(wrong)} tensors differ, {wrong[0]} first" if wrong else None,
        f"{copied} tensors copied and {len(steps.steps) - copied} computed, all equal to the byte",
    )


def _is_recomputed(
    step: Step,
    plan: Plan,
    checkpoint: Checkpoint,
    reader: TensorReader,
    output: TensorReader,
    advance: Progress,
) -> bool:
    stored = checkpoint.tensors.get(step.name)
    if stored is None or (stored.dtype, stored.shape) != (step.dtype, step.shape):
        return False
    if step.is_copy:
        pieces = (
            (start, reader.read(step.source, start, min(CHUNK_BYTES, step.nbytes - start)))
            for start in range(0, step.nbytes, CHUNK_BYTES)
        )
    else:
        pieces = step_bytes(step, plan.merge, plan.seed, reader)  # type: ignore[assignment]
    same = True
    for start, data in pieces:
        same = same and bool((output.read(stored, start, data.nbytes) == data).all())
        advance(data.nbytes)
    return same


def _check_logits(proof: Proof, model: SourceModel, plan: Plan, layers: int | None) -> None:
    chosen = _layers_to_run(model, layers)
    total = 1 + max(block.layer for block in model.blocks)
    which = (
        f"all {total} layers" if len(chosen) == total else f"layers {', '.join(map(str, chosen))} of {total}"
    )
    here = excerpt_plan(plan, chosen)
    with TemporaryDirectory(prefix="gqkva-verify-") as scratch:
        output, expanded, again = (Path(scratch) / name for name in ("output", "expanded", "again"))
        same = _unchanged_plan(plan)
        write_excerpt(model, same, make_steps(model, same), chosen, output)
        output_model = open_model(output)
        back = reversed_plan(here)
        everything = range(len(chosen))
        write_excerpt(output_model, back, make_steps(output_model, back), everything, expanded)
        if RULES[plan.merge].starts_afresh:
            proof.add("tied-heads control", None, "not applicable: random heads are new")
        else:
            expanded_model = open_model(expanded)
            tied = Plan(plan.variant, plan.grouping, plan.merge, plan.seed, None, here.blocks)
            write_excerpt(expanded_model, tied, make_steps(expanded_model, tied), everything, again)
            equal = file_sha256(again / "model.safetensors") == file_sha256(output / "model.safetensors")
            proof.add(
                "tied-heads control",
                None if equal else "merging heads that already agree changed them",
                f"merging heads that already agree gives every byte back ({which})",
            )
        ours, load_failure = _logits(output)
        reference, source_failure = _logits(expanded)
        failure = load_failure or source_failure
        proof.add(
            "loads in stock transformers", failure, f"no missing, unexpected or resized tensor ({which})"
        )
        if failure is None:
            scale = max(float(reference.abs().max()), 1e-30)
            difference = float((ours - reference).abs().max()) / scale
            proof.add(
                "logits",
                None if difference <= TOLERANCE else f"differ by {difference:.1e} of the largest logit",
                f"within {difference:.1e} of the largest of the plan applied in memory ({which})",
            )


def _layers_to_run(model: SourceModel, layers: int | None) -> list[int]:
    """Evenly spread layers, as many as asked for or as fit."""
    total = 1 + max(block.layer for block in model.blocks)
    if layers is None:
        markers = tuple(f".{name}." for name in ("layers", "h", "block", "layer"))
        inside = sum(
            tensor.nbytes
            for name, tensor in model.checkpoint.tensors.items()
            if any(marker in f".{name}" for marker in markers)
        )
        width = 4 / (
            model.checkpoint.nbytes
            / max(1, count_parameters(tensor.shape for tensor in model.checkpoint.tensors.values()))
        )
        outside = model.checkpoint.nbytes - inside
        layers = int((MAX_RUN_BYTES / width - outside) // max(1, inside // total))
    count = max(1, min(total, layers))
    if count == 1:
        return [0]
    return sorted({round(place * (total - 1) / (count - 1)) for place in range(count)})


def _unchanged_plan(plan: Plan) -> Plan:
    """A plan that leaves the output's heads as they are."""
    blocks = tuple(
        type(block)(block.kind, block.layer, block.target, block.target, tuple(range(len(block.order))))
        for block in plan.blocks
    )
    return Plan(plan.variant, "neighbour", "mean", 0, None, blocks)


def _logits(folder: Path) -> tuple[Any, str | None]:
    """Logits of a fixed input in float32, and what went wrong while loading."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    name = (config.architectures or [""])[0]
    loader = getattr(transformers, name, transformers.AutoModel)
    network, info = loader.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
    )
    faults = {
        kind: sorted(info[kind])
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info[kind]
    }
    failure = None
    if faults:
        kind, names = next(iter(faults.items()))
        failure = f"{kind.replace('_', ' ')}: {', '.join(map(str, names[:3]))}"
    generator = torch.Generator().manual_seed(0)
    length = min(32, getattr(config, "max_position_embeddings", 32))
    tokens = torch.randint(config.vocab_size, (2, length), generator=generator)
    with torch.inference_mode():
        output = network.eval()(input_ids=tokens, use_cache=False)
    logits = output.logits if hasattr(output, "logits") else output.last_hidden_state
    del network, output
    gc.collect()
    return logits, failure


def _store(folder: Path, report: dict[str, Any], result: dict[str, Any]) -> None:
    path, scratch = folder / REPORT, folder / f".{REPORT}.new"
    try:
        write_json(scratch, {**report, "verification": result})
        scratch.replace(path)
    except OSError as error:
        raise OutputError(f"the proof could not be stored in {path}: {error.strerror}") from error


def require(result: dict[str, Any]) -> None:
    """Raise unless every check passed.

    Raises:
        VerificationError: Naming the first check that failed.
    """
    failed = [check for check in result["checks"] if not check["passed"]]
    if failed:
        raise VerificationError(f"{failed[0]['check']}: {failed[0]['detail']}")
