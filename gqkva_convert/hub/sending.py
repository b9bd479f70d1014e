"""A push under way: files first, each under its SHA-256, then one commit that names them all."""

from __future__ import annotations

import hashlib
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gqkva_convert._version import __version__
from gqkva_convert.checkpoint.hub_errors import redact
from gqkva_convert.description.card import is_ours
from gqkva_convert.errors import HubError
from gqkva_convert.hub.files import CARD, stale_weights
from gqkva_convert.hub.retries import Say, ask
from gqkva_convert.units import human_bytes

# Files below this together are sent side by side, larger ones alone, so that an interrupt loses little.
GROUP_BYTES = 8 << 20


@dataclass(frozen=True)
class PushFile:
    """One file to send."""

    name: str
    content: Path | bytes
    bytes: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return name, size and checksum as JSON data."""
        return {"name": self.name, "bytes": self.bytes, "sha256": self.sha256}

    @property
    def git_id(self) -> str:
        """Return git's id of the file, which the Hub states for files that it keeps in git."""
        content = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        named = b"blob %d\0" % self.bytes + content
        return hashlib.sha1(named, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Push:
    """A push ready to be sent; nothing has been asked of the Hub yet.

    Attributes:
        left: Reasons for files that are not sent, by name.
        card: Handling of the card: ``written``, ``kept`` (the user's own) or ``replaced``.
        remarks: Notes for the user: duties of the licence, what is not proven.
    """

    folder: Path
    repo_id: str
    files: tuple[PushFile, ...]
    left: dict[str, str]
    card: str
    card_text: str
    remarks: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the push as JSON data, for `--dry-run --json`."""
        return {
            "folder": str(self.folder),
            "repo": self.repo_id,
            "bytes": sum(file.bytes for file in self.files),
            "files": [file.to_dict() for file in self.files],
            "left_here": self.left,
            "remarks": self.remarks,
            "card": self.card,
            "card_text": self.card_text,
        }


class Sending:
    """One push under way."""

    def __init__(self, prepared: Push, revision: str | None, create_pr: bool, say: Say) -> None:
        from huggingface_hub import HfApi

        self.prepared, self.repo = prepared, prepared.repo_id
        self.revision, self.create_pr, self.say = revision, create_pr, say
        self.api = HfApi(library_name="gqkva", library_version=__version__)

    def run(self, private: bool, message: str, new_card: bool) -> dict[str, Any]:
        self._check_account()
        self._make_repository(private)
        there = self._tree(self.revision)
        remarks = list(self.prepared.remarks)
        files = list(self.prepared.files)
        if self.prepared.card == "kept":
            own = self.prepared.folder / CARD
            remarks.append(f"{own} is your own and goes as it is (--card writes ours)")
        elif not new_card and self._is_edited_there(there):
            files = [file for file in files if file.name != CARD]
            remarks.append(f"{self.repo} has a card that somebody edited; it stays (--card writes a new one)")
        missing = [file for file in files if not _is_same(there.get(file.name), file)]
        stale = stale_weights(set(there), {file.name for file in files})
        for remark in remarks:
            self.say(f"note: {remark}")
        url, commit, pull = self._commit(missing, stale, message, self._upload(missing))
        self._check_arrival(files, commit)
        return {
            "repo": self.repo,
            "commit_url": url,
            "commit": commit,
            "pr_url": pull,
            "files": [{**file.to_dict(), "was_there": file not in missing} for file in files],
            "removed_there": stale,
            "left_here": self.prepared.left,
            "card": self.prepared.card if len(files) == len(self.prepared.files) else "kept there",
            "remarks": [redact(remark) for remark in remarks],
        }

    def _ask(self, request: Callable[[], Any], *, again: bool = True) -> Any:
        return ask(self.repo, request, self.say, again=again)

    def _check_account(self) -> None:
        account = self._ask(self.api.whoami)
        if not isinstance(account, dict):
            raise HubError(f"{self.api.endpoint} does not answer as the Hub does; check HF_ENDPOINT")
        token = (account.get("auth") or {}).get("accessToken") or {}
        if token.get("role") == "read":
            raise HubError(
                f"the token of {account.get('name')} may only read; make one that may write at "
                "https://huggingface.co/settings/tokens"
            )

    def _make_repository(self, private: bool) -> None:
        if not self.create_pr:
            self._ask(
                lambda: self.api.create_repo(
                    self.repo, private=True if private else None, repo_type="model", exist_ok=True
                )
            )
        info = self._ask(lambda: self.api.model_info(self.repo))
        if private and not info.private:
            raise HubError(
                f"{self.repo} exists and is public; make it private in its settings first, or choose another "
                "name"
            )
        branch = self.revision
        if branch is not None and not branch.startswith("refs/"):
            self._ask(lambda: self.api.create_branch(self.repo, branch=branch, exist_ok=True))

    def _tree(self, revision: str | None) -> dict[str, Any]:
        """List the repository's files by name."""

        def files() -> dict[str, Any]:
            found = self.api.list_repo_tree(self.repo, recursive=True, revision=revision)
            return {entry.path: entry for entry in found if hasattr(entry, "size")}

        tree: dict[str, Any] = self._ask(files)
        return tree

    def _is_edited_there(self, there: dict[str, Any]) -> bool:
        """Return whether the repository's card is neither ours nor the stub that the Hub makes."""
        if CARD not in there:
            return False
        from huggingface_hub import hf_hub_download

        path = self._ask(lambda: hf_hub_download(self.repo, CARD, revision=self.revision))
        text = Path(path).read_text(encoding="utf-8", errors="replace")
        body = re.sub(r"\A---\s*\n.*?\n---\s*(?:\n|\Z)", "", text, flags=re.DOTALL)
        return bool(body.strip()) and not is_ours(text)

    def _upload(self, missing: list[PushFile]) -> list[Any]:
        """Send large files, a group at a time, and return all files as operations of a commit."""
        from huggingface_hub import CommitOperationAdd

        total, sent, started = sum(file.bytes for file in missing), 0, time.monotonic()
        operations = []
        with _bars_on_terminals_only():
            for group in _groups(missing):
                additions = [_addition(CommitOperationAdd, file) for file in group]
                self.say(_describe(group, missing, sent, total, time.monotonic() - started))
                self._ask(
                    partial(
                        self.api.preupload_lfs_files,
                        self.repo,
                        additions,
                        revision=self.revision,
                        create_pr=self.create_pr,
                        free_memory=False,
                    )
                )
                operations += additions
                sent += sum(file.bytes for file in group)
        return operations

    def _commit(
        self, missing: list[PushFile], stale: list[str], message: str, operations: list[Any]
    ) -> tuple[str, str, str | None]:
        """Commit the sent files; return the address and id of the commit, and of a pull request."""
        from huggingface_hub import CommitOperationDelete

        if not missing and not stale:
            self.say("everything is there already")
            return *self._head(), None
        self.say(f"making one commit of {len(missing) + len(stale)} changes")
        tried: list[bool] = []

        def commit() -> tuple[str, str, str | None]:
            if tried:  # the answer to the first try may have been lost on its way
                there = self._tree(self.revision)
                arrived = all(_is_same(there.get(file.name), file) for file in missing)
                if arrived and there.keys().isdisjoint(stale):
                    return *self._head(), None
            tried.append(True)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                made = self.api.create_commit(
                    self.repo,
                    [*operations, *(CommitOperationDelete(name) for name in stale)],
                    commit_message=message,
                    revision=self.revision,
                    create_pr=self.create_pr,
                )
            for warning in caught:
                self.say(redact(f"note: {' '.join(str(warning.message).split())}"))
            return made.commit_url, made.oid, made.pr_url

        try:
            # A pull request cannot be asked for twice without there being two.
            found: tuple[str, str, str | None] = self._ask(commit, again=not self.create_pr)
        except HubError as error:
            if self.create_pr:
                raise HubError(f"{error}; see first whether {self.repo} has the pull request") from error
            raise
        return found

    def _head(self) -> tuple[str, str]:
        commit = self._ask(lambda: self.api.model_info(self.repo, revision=self.revision)).sha
        return f"{self.api.endpoint}/{self.repo}/commit/{commit}", commit

    def _check_arrival(self, files: list[PushFile], commit: str) -> None:
        there = self._tree(commit)
        wrong = [file.name for file in files if not _is_same(there.get(file.name), file)]
        if wrong:
            raise HubError(
                f"{self.repo} at {commit[:12]} does not hold what was sent: {', '.join(wrong[:3])}; push "
                "again, and see whether its .gitignore names them"
            )


def _is_same(entry: Any, file: PushFile) -> bool:
    """Return whether a file on the Hub is the one here, by size and the Hub's checksum."""
    if entry is None or entry.size != file.bytes:
        return False
    if entry.lfs is not None:
        return bool(entry.lfs.sha256 == file.sha256)
    return bool(entry.blob_id == file.git_id)


def _addition(kind: Any, file: PushFile) -> Any:
    addition = kind(path_in_repo=file.name, path_or_fileobj=file.content)
    addition.upload_info.sha256 = bytes.fromhex(file.sha256)  # or a large file would be read once more
    return addition


def _groups(files: list[PushFile]) -> list[list[PushFile]]:
    groups: list[list[PushFile]] = []
    size = GROUP_BYTES
    for file in sorted(files, key=lambda file: (file.bytes, file.name)):
        if size + file.bytes > GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.bytes
    return groups


def _describe(group: list[PushFile], files: list[PushFile], sent: int, total: int, seconds: float) -> str:
    """Describe the file being sent, the remaining bytes and the remaining time."""
    what = group[0].name if len(group) == 1 else f"{len(group)} small files"
    line = f"sending {what}: {human_bytes(sent)} of {human_bytes(total)} in {len(files)} files are through"
    if sent and seconds > 1:
        left = (total - sent) * seconds / sent
        line += f", about {left / 60:,.0f} min left" if left > 90 else f", about {left:.0f} s left"
    return line


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Show huggingface_hub's progress bars only on a terminal."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    is_undecided = constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    if not is_undecided or sys.stderr.isatty():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
