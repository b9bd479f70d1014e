"""`gqkva push`: a verified folder with its card, on the Hugging Face Hub in one commit.

Large files are sent first, each under its SHA-256, and one commit names them all at the end: half a model
is never visible, and an interrupted push finds the files it has sent. By hand, because huggingface_hub's
`upload_large_folder` takes no message and opens no pull request, and `upload_folder` makes several commits.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.digest import file_sha256
from gqkva_convert.checkpoint.folder import Checkpoint, open_checkpoint
from gqkva_convert.checkpoint.hub_errors import redact
from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.checkpoint.sidecars import BENCH, EVALUATION, PAGE, REPORT
from gqkva_convert.conversion.verify import require_verified
from gqkva_convert.data.names import without_folders
from gqkva_convert.description.card import is_ours, model_card, read_card
from gqkva_convert.description.facts import is_newer
from gqkva_convert.description.licences import duties, find_licence, obstacle
from gqkva_convert.description.plots import QUALITY
from gqkva_convert.errors import HubError, VerificationError
from gqkva_convert.hub.files import CARD, choose_files, refuse_tokens
from gqkva_convert.hub.retries import Say, require_token
from gqkva_convert.hub.sending import Push, PushFile, Sending
from gqkva_convert.progress import Progress, Stages, byte_stage, no_stages
from gqkva_convert.records.report import read_report
from gqkva_convert.records.source_card import front_matter, stated_card

# Files that name models and data as they were called here.
_RECORDS = (REPORT, EVALUATION, BENCH)
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    new_card: bool = False,
    unverified: bool = False,
    licence_checked: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    stages: Stages = no_stages,
    say: Say | None = None,
) -> dict[str, Any]:
    """Send a converted folder and its model card to the Hugging Face Hub.

    The token is the one of ``hf auth login`` or HF_TOKEN. Everything arrives in one commit, after which sizes
    and checksums on the Hub are compared with the folder's. The same call
    resumes an interrupted push: files that have arrived are not sent a second time.

    Args:
        folder: Output of `convert`, `export` or `uptrain`, as `verify` proved it.
        repo_id: ``USER/NAME``; made if there is no such repository.
        private: Make the repository private; refused for one that is public already.
        revision: Branch to push to; made if there is none. By default ``main``.
        create_pr: Open a pull request with the commit, in a repository that exists.
        message: Message of the commit.
        new_card: Write a new card over one that somebody has edited.
        unverified: Push although `verify` has not proven the folder; the card says so.
        licence_checked: Push although the source's licence forbids derived models, as far as we can tell.
        dry_run: Send nothing and ask nothing of the Hub.
        progress: Called with the number of bytes of weights just read and compared.
        stages: Begins a stage of progress.
        say: Called with a line about each thing that is done.

    Returns:
        JSON data: ``commit_url``, ``pr_url``, the files, what stayed here, what was removed, remarks; with
        ``dry_run`` what would be sent, and the card.

    Raises:
        VerificationError: The folder is no output of ours, or not as it was verified.
        CheckpointError: It is incomplete, or a file of it cannot be used.
        HubError: The Hub does not take it, or its licence seems to forbid it.
        KeyboardInterrupt: It was interrupted; says what remains of it.
    """
    check_place(revision, create_pr)
    prepared = prepare_push(
        folder,
        repo_id,
        new_card=new_card,
        unverified=unverified,
        licence_checked=licence_checked,
        progress=progress,
        stages=stages,
    )
    if dry_run:
        return prepared.to_dict()
    refuse_tokens((message or "").encode(), "--message")
    require_token()
    _write_card(prepared)
    message = message or f"Upload {prepared.folder.resolve().name} with gqkva"
    try:
        return Sending(prepared, revision, create_pr, say or (lambda _: None)).run(private, message, new_card)
    except KeyboardInterrupt as error:
        error.args = ("what has arrived on the Hub stays there; run the same command again to resume",)
        raise


def prepare_push(
    folder: str | Path,
    repo_id: str,
    *,
    new_card: bool = False,
    unverified: bool = False,
    licence_checked: bool = False,
    progress: Progress | None = None,
    stages: Stages = no_stages,
) -> Push:
    """Check all that can be checked here, and make the card; takes the arguments of `push`."""
    folder = Path(folder)
    check_name(repo_id)
    checkpoint = _open_ours(folder)
    nbytes = sum(file.stat().st_size for file in checkpoint.files)
    advance = byte_stage(stages, f"checking {folder}", nbytes, progress)
    report = read_report(folder)
    if unverified:
        checksums = {file.name: file_sha256(file, advance) for file in checkpoint.files}
    else:
        checksums = require_verified(folder, advance)
    licence = find_licence(stated_card(report.source.card), folder)
    remarks = duties(licence, repo_id.rpartition("/")[2])
    forbids = obstacle(licence)
    if forbids is not None and not licence_checked:
        raise HubError(
            f"{forbids}; if you have the right to publish {folder} all the same, give --licence-checked"
        )
    if unverified:
        remarks.append(f"{folder} goes out without `gqkva verify` having proven it as it is")
    how, text = _card(folder, repo_id, new_card)
    if how == "kept" and licence.ids and not front_matter(folder / CARD).get("license"):
        stated = licence.name or ", ".join(licence.ids)
        remarks.append(f"{folder / CARD} names no licence in its front matter; the source's is {stated}")
    sent, left = choose_files(checkpoint, text)
    for shown, of in ((PAGE, (EVALUATION, BENCH)), (QUALITY, (EVALUATION,))):
        if shown in sent and any(is_newer(folder / name, sent[shown]) for name in of):
            del sent[shown]
            left[shown] = "older than what was measured since; write it again with gqkva report"
    recorded = {name: public_record(path) for name, path in sent.items() if name in _RECORDS}
    files = [
        PushFile(name, path, path.stat().st_size, checksums.get(name) or file_sha256(path))
        for name, path in sent.items()
        if name not in recorded
    ]
    content = text.encode()
    refuse_tokens(content, f"the card of {folder}")
    for name, written in {**recorded, CARD: content}.items():
        files.append(PushFile(name, written, len(written), hashlib.sha256(written).hexdigest()))
    return Push(folder, repo_id, tuple(files), left, how, text, remarks)


def public_record(path: Path) -> bytes:
    """Return the content of a file of ours without the folders of this machine."""
    data = read_json(path)
    source = data.get("source") if path.name == REPORT else None
    if isinstance(source, dict) and not source.get("revision"):
        # No model of the Hub: a folder, however its name looks.
        source["name"] = Path(str(source.get("name"))).name
    command = data.get("command") if path.name == REPORT else None
    if isinstance(command, list) and len(command) > 2:
        local = not isinstance(source, dict) or not source.get("revision")
        command[1:3] = [Path(command[1]).name if local else command[1], Path(command[2]).name]
    return f"{json.dumps(without_folders(data), indent=2)}\n".encode()


def check_name(repo_id: str) -> None:
    """Refuse a malformed name of a model repository.

    Raises:
        HubError: It is none.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    kind = repo_id.partition("/")[0]
    if kind in ("datasets", "spaces") and repo_id.count("/") == 2:
        raise HubError(f"{repo_id} is among the Hub's {kind}; give a model repository, USER/NAME")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"{redact(repo_id)} is no name a Hub repository can have; give USER/NAME") from error
    if not _REPO_ID.fullmatch(repo_id):
        raise HubError(f"{redact(repo_id)} names no owner or holds odd characters; give USER/NAME")


def _open_ours(folder: Path) -> Checkpoint:
    checkpoint = open_checkpoint(folder)
    if not (folder / REPORT).is_file():
        raise VerificationError(
            f"{folder} has no {REPORT}: it is no output of gqkva; send other folders with `hf upload`"
        )
    return checkpoint


def _card(folder: Path, repo_id: str, new_card: bool) -> tuple[str, str]:
    path = folder / CARD
    if path.is_file() and not new_card:
        text = read_card(path)
        if not is_ours(text):
            return "kept", text
    text = str(model_card(folder, repo_id=repo_id))
    return ("replaced" if path.is_file() else "written"), text


def check_place(revision: str | None, create_pr: bool) -> None:
    """Refuse places that exclude each other.

    Raises:
        HubError: Both a branch and a pull request are asked for.
    """
    if create_pr and revision is not None:
        raise HubError("a pull request goes to the main branch; leave out --revision or --create-pr")


def _write_card(prepared: Push) -> None:
    """Write the card into the folder, where the user may edit it; an edited card is kept the next time."""
    if prepared.card != "kept":
        path, scratch = prepared.folder / CARD, prepared.folder / f".{CARD}.new"
        with suppress(OSError):  # the folder may be read-only; the card goes out all the same
            scratch.write_text(prepared.card_text, encoding="utf-8")
            scratch.replace(path)
