"""The report beside converted weights: their source, the conversion, the proof and the training since."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field

from gqkva_convert.checkpoint.folder import Checkpoint
from gqkva_convert.checkpoint.hub import Located
from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.checkpoint.sidecars import REPORT, TRAINING
from gqkva_convert.errors import VerificationError
from gqkva_convert.records.family_proof import FamilyProof
from gqkva_convert.records.record import Loss, Record, checked, read_record
from gqkva_convert.records.source_card import source_card
from gqkva_convert.records.training import Training


class WeightFile(Record):
    """Identity of a weight file; ``sha256`` is the Hub's, where it states one."""

    bytes: int
    tensors_sha256: str
    sha256: str | None = None


class Source(Record):
    """The checkpoint that was converted."""

    name: str
    revision: str | None = None
    card: dict[str, Any] | None = None
    config: dict[str, Any] = {}
    bytes: int
    parameters: int | None = None
    files: dict[str, WeightFile]


class Tensor(Record):
    """A tensor that is no copy: its operation, what it is made from, and a checksum where data decided it."""

    operation: str
    sources: list[str] = Field(validation_alias=AliasChoices("from", "sources"), serialization_alias="from")
    sha256: str | None = None


class Calibration(Record):
    """The calibration data of a conversion, and the error of each block on the part held out."""

    sha256: str
    samples: int
    held_out_samples: int
    held_out_error: dict[str, dict[str, Loss]] | None = None
    reading: dict[str, Any] | None = None


class Check(Record):
    """A check of `gqkva verify` and its finding."""

    check: str
    passed: bool
    detail: str


class Verification(Record):
    """The result of the last `gqkva verify`."""

    passed: bool
    date: str | None = None
    against: str | None = None
    versions: dict[str, str] = {}
    checks: list[Check] = []
    sha256: dict[str, str] = {}
    source_sha256: dict[str, str] | None = None


class Report(Record):
    """All of gqkva_report.json. The plan is read by `plans.plan.Plan.from_dict`."""

    format_version: Literal[1]
    versions: dict[str, str] = {}
    command: list[str] = []
    source: Source
    plan: dict[str, Any]
    steps: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    config: dict[str, Any]
    files: dict[str, WeightFile]
    files_left_behind: dict[str, str] = {}
    bytes: int | None = None
    parameters: int | None = None
    seconds: dict[str, float] = {}
    verification: Verification | None = None
    calibration: Calibration | None = None
    family_proof: FamilyProof | None = None
    uptraining: Training | None = None
    uptraining_before: list[Training] = []

    @property
    def is_verified(self) -> bool:
        return self.verification is not None and self.verification.passed


def describe_source(located: Located, checkpoint: Checkpoint, parameters: int) -> Source:
    """Describe a source: its name, revision, sizes, card, and what identifies its files.

    Args:
        located: The source.
        checkpoint: Its files.
        parameters: How many weights it has.
    """
    return Source(
        name=located.name,
        revision=located.revision,
        card=source_card(located.folder),
        config=checkpoint.config,
        bytes=checkpoint.nbytes,
        parameters=parameters,
        files=describe_files(checkpoint, located.sha256),
    )


def describe_files(checkpoint: Checkpoint, sha256: dict[str, str] | None = None) -> dict[str, WeightFile]:
    """Describe what identifies a checkpoint's files, without reading them whole.

    Args:
        checkpoint: An opened checkpoint.
        sha256: Checksums already known, by file name; those of a Hub model come with it.
    """
    known = sha256 or {}
    return {
        file.name: WeightFile(
            bytes=file.stat().st_size,
            tensors_sha256=tensors_sha256(checkpoint, file),
            **({"sha256": known[file.name]} if file.name in known else {}),
        )
        for file in checkpoint.files
    }


def tensors_sha256(checkpoint: Checkpoint, file: Path) -> str:
    """Return the SHA-256 of a file's table of contents: name, dtype, shape and offset, one tensor a line."""
    lines = [
        f"{tensor.name} {tensor.dtype} {list(tensor.shape)} {tensor.offset}\n"
        for tensor in checkpoint.tensors.values()
        if tensor.file == file
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_report(folder: Path) -> Report:
    """Read the report of a converted folder.

    Raises:
        VerificationError: There is none, it is of another version, or it is damaged; names the field.
    """
    path = folder / REPORT
    if not path.is_file():
        what = f"has no {REPORT}" if folder.is_dir() else "is no folder"
        raise VerificationError(f"{folder} {what}; give an output of gqkva convert, export or uptrain")
    return checked(
        Report,
        read_json(path),
        lambda fault: VerificationError(
            f"{path} is damaged or of another version: {fault}; use the gqkva that wrote it"
        ),
    )


def read_training(folder: Path) -> Training | None:
    """Read the last training of a folder; None where it was not trained.

    Raises:
        VerificationError: The folder's report is damaged.
        CheckpointError: The record of a folder that is no conversion is damaged.
    """
    if (folder / REPORT).is_file():
        return read_report(folder).uptraining
    return read_record(folder / TRAINING, Training, "gqkva uptrain")
