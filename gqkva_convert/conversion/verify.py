"""`gqkva verify`: proof that an output is what its plan says."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

from gqkva_convert._version import __version__
from gqkva_convert.checkpoint.digest import file_sha256
from gqkva_convert.checkpoint.dtypes import FLOATS
from gqkva_convert.checkpoint.folder import Checkpoint
from gqkva_convert.checkpoint.hub import locate
from gqkva_convert.checkpoint.jsonfile import replace_json
from gqkva_convert.checkpoint.sidecars import REPORT, module_weights
from gqkva_convert.conversion.logits import check_logits
from gqkva_convert.conversion.proof import Proof
from gqkva_convert.conversion.recomputed import CHUNK_BYTES, check_recomputed
from gqkva_convert.conversion.written import check_files_beside
from gqkva_convert.errors import UsageError, VerificationError
from gqkva_convert.modeling.bundle import modeling_text
from gqkva_convert.modeling.families import GROUPED_FAMILIES, modeling_module
from gqkva_convert.plans.config import converted_config
from gqkva_convert.plans.plan import Plan
from gqkva_convert.progress import Progress, Stages, byte_stage, no_stages
from gqkva_convert.records.environment import versions
from gqkva_convert.records.report import Report, Verification, WeightFile, describe_files, read_report
from gqkva_convert.source.config_keys import is_grouped
from gqkva_convert.source.model import SourceModel, open_model
from gqkva_convert.transforms.precision import STORED, is_finite


def verify(
    folder: str | Path,
    against: str | Path | None = None,
    *,
    revision: str | None = None,
    layers: int | None = None,
    progress: Progress | None = None,
    stages: Stages = no_stages,
) -> dict[str, Any]:
    """Prove that a converted folder is what its report says, and store the proof in the report.

    Always: files, names, shapes and dtypes; checksums; finite values; the modelling file of a grouped model,
    unless another version of gqkva wrote it; the tied-heads control (the same plan on weights whose heads
    already agree gives the same bytes back); the folder loads in transformers with an Auto class, and its
    logits are those of the source's architecture with every head replaced by the head the plan merged it
    into; tokenizer, processors and sentence-transformers modules load and run, the last where that package is
    installed. With ``against``, also every tensor recomputed from the source, and the answers of tokenizer,
    processors and modules compared with the source's.

    Args:
        folder: Output of `convert`.
        against: The source: a folder or a Hub id.
        revision: Branch, tag or commit of a Hub id.
        layers: Layers to run in the logit checks; by default the largest number that fits 2 GiB in float32.
        progress: Called with the number of bytes just checked.
        stages: Begins a stage of progress.

    Returns:
        JSON data: ``passed``, the checks with what each found, checksums, and whether the report could be
        written (``stored``).

    Raises:
        VerificationError: The folder holds no report of ours.
        GqkvaError: The folder or the source cannot be read.
    """
    if layers is not None and layers < 1:
        raise UsageError(f"--layers {layers}: at least 1")
    folder = Path(folder)
    report = read_report(folder)
    plan = Plan.from_report(report)
    model = open_model(folder)
    nbytes = 2 * model.checkpoint.nbytes
    if against is not None:
        nbytes += model.checkpoint.nbytes + report.source.bytes
    advance = byte_stage(stages, f"checking {folder}", nbytes, progress)
    proof = Proof()
    _check_files(proof, model, plan, report)
    earlier = report.verification.sha256 if report.verification is not None else {}
    checksums = _check_checksums(proof, model.checkpoint, earlier, advance)
    _check_finite(proof, model.checkpoint, advance)
    if is_grouped(model.config):
        _check_modeling_file(proof, model)
    source_checksums = None
    if against is not None:
        source_checksums = _check_source(proof, model, plan, report, str(against), revision, advance)
    if proof.passed:
        beside = None if against is None else locate(str(against), revision).folder
        check_files_beside(proof, model, beside)
        check_logits(proof, model, plan, layers, beside)
    result = Verification(
        passed=proof.passed,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        against=None if against is None else str(against),
        versions=versions(),
        checks=proof.checks,
        # Checksums of a folder that failed must not become what it is measured by next time.
        sha256=checksums if proof.passed else earlier,
        source_sha256=source_checksums,
    )
    return {**result.to_dict(), "stored": _store(folder, report, result)}


def require_verified(folder: str | Path, progress: Progress | None = None) -> dict[str, str]:
    """Return the SHA-256 of a folder's weight files after checking that `verify` proved them all.

    Raises:
        VerificationError: It was never verified, did not pass, or has changed since; says what to do.
    """
    folder = Path(folder)
    report = read_report(folder)
    proven = report.verification
    if proven is None:
        raise VerificationError(f"{folder} is not verified; run `gqkva verify {folder}` first")
    if not proven.passed:
        raise VerificationError(f"{folder} did not pass its verification; see `gqkva verify {folder}`")
    model, proof = open_model(folder), Proof()
    _check_files(proof, model, Plan.from_report(report), report)
    if is_grouped(model.config):
        _check_modeling_file(proof, model)
    checksums: dict[str, str] = {}
    if proof.passed:
        checksums = _check_checksums(proof, model.checkpoint, proven.sha256, progress or (lambda _: None))
    failed = next((check for check in proof.checks if not check.passed), None)
    if failed is not None or checksums != proven.sha256:
        found = f"{failed.check}: {failed.detail}" if failed else "other files than were verified"
        raise VerificationError(f"{folder} is not what was verified ({found}); run `gqkva verify {folder}`")
    return checksums


def _check_files(proof: Proof, model: SourceModel, plan: Plan, report: Report) -> None:
    recorded, found = _identities(report.files), _identities(describe_files(model.checkpoint))
    wrong = [name for name in sorted(recorded.keys() | found.keys()) if recorded.get(name) != found.get(name)]
    proof.add(
        "files, names, shapes, dtypes",
        f"{', '.join(wrong)} differ from the report" if wrong else None,
        f"{len(found)} files, {len(model.checkpoint.tensors)} tensors as reported",
    )
    layouts = [block.layout for block in model.blocks]
    planned = [block.target for block in plan.blocks]
    keys = model.config.keys() | report.config.keys()
    changed = sorted(key for key in keys if model.config.get(key) != report.config.get(key))
    failure = f"{', '.join(changed)} differ from what was written" if changed else None
    if layouts != planned:
        failure = "config.json does not describe the plan's layouts"
    described = f"{planned[0].name} in all {len(planned)} blocks" if len(set(planned)) == 1 else "as planned"
    proof.add("configuration", failure, described)


def _identities(files: dict[str, WeightFile]) -> dict[str, tuple[int, str]]:
    return {name: (file.bytes, file.tensors_sha256) for name, file in files.items()}


def _check_checksums(
    proof: Proof, checkpoint: Checkpoint, earlier: dict[str, str], advance: Progress
) -> dict[str, str]:
    found = {file.name: file_sha256(file, advance) for file in checkpoint.files}
    # Those of sentence-transformers modules are few: they are not in the progress.
    found |= {name: file_sha256(file) for name, file in module_weights(checkpoint.folder).items()}
    changed = [name for name, digest in earlier.items() if found.get(name) != digest]
    proof.add(
        "checksums",
        f"{', '.join(changed)} changed since the last verification" if changed else None,
        "as at the last verification" if earlier else "recorded",
    )
    return found


def _check_finite(proof: Proof, checkpoint: Checkpoint, advance: Progress) -> None:
    bad = []
    with checkpoint.reader() as reader:
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


def _check_modeling_file(proof: Proof, model: SourceModel) -> None:
    """Check the modelling file byte by byte, because others run it when they trust the folder."""
    family = GROUPED_FAMILIES[model.family.model_type]
    path = model.checkpoint.folder / f"{modeling_module(family)}.py"
    found = path.read_text(errors="replace") if path.is_file() else ""
    version = re.search(r"^Written by gqkva (\S+) ", found, re.MULTILINE)
    failure, detail = None, f"{path.name} as gqkva {__version__} writes it"
    if not path.is_file():
        failure = f"{path.name} is missing: transformers cannot load the folder without gqkva"
    elif version is not None and version[1] != __version__:
        detail = f"{path.name} was not compared: it says that gqkva {version[1]} wrote it, this is another"
    elif found != modeling_text(family):
        failure = f"{path.name} is not what gqkva {__version__} writes; do not trust it unread"
    proof.add("modelling file", failure, detail)


def _check_source(
    proof: Proof,
    model: SourceModel,
    plan: Plan,
    report: Report,
    against: str,
    revision: str | None,
    advance: Progress,
) -> dict[str, str]:
    """Compare with the source; gives the SHA-256 of its files."""
    source = open_model(locate(against, revision).folder)
    recorded, found = _identities(report.source.files), _identities(describe_files(source.checkpoint))
    checksums = {file.name: file_sha256(file, advance) for file in source.checkpoint.files}
    stated = {name: file.sha256 for name, file in report.source.files.items() if file.sha256 is not None}
    is_same = recorded == found and all(checksums[name] == digest for name, digest in stated.items())
    proof.add(
        "source",
        None if is_same else f"{against} is not the checkpoint this was converted from",
        f"{against}: {len(found)} files as recorded",
    )
    if not is_same:
        return checksums
    same_config = converted_config(source, plan) == model.config
    proof.add(
        "configuration from the source",
        None if same_config else f"config.json is not that of {against} with the new head counts",
        "as the source's, but for the head counts",
    )
    if report.uptraining is not None:
        trained = f"on {report.uptraining.tokens:,} tokens; its weights cannot be recomputed"
        proof.add("trained since", None, trained)
        return checksums
    check_recomputed(proof, model, source, plan, report, advance)
    return checksums


def _store(folder: Path, report: Report, result: Verification) -> bool:
    """Put the proof into the report; says whether the folder could be written."""
    try:
        replace_json(folder / REPORT, report.model_copy(update={"verification": result}).to_dict())
    except OSError:
        return False
    return True


def require(result: dict[str, Any]) -> None:
    """Raise unless every check passed.

    Raises:
        VerificationError: Naming the first check that failed.
    """
    for check in result["checks"]:
        if not check["passed"]:
            raise VerificationError(f"{check['check']}: {check['detail']}")
