"""Errors of the Hub are told apart, and no token gets into a message or a file."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

from gqkva_convert.checkpoint.hub_errors import explain, holds_token, is_of_the_hub, may_pass, redact

TEXTS = {
    "gated": "{repo} is gated",
    "busy": "busy{said}",
    "room": "no room: {words}",
    "unreachable": "unreachable ({own})",
    "refused": "refused {repo} ({status})",
}


def answer(kind: type[HfHubHTTPError], status: int, words: str | None = None) -> HfHubHTTPError:
    """An error of an answer, whatever library huggingface_hub talks through."""
    error = kind.__new__(kind, "not possible")
    error.response, error.server_message = SimpleNamespace(status_code=status), words
    return error


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said", "passes"),
    [
        (answer(GatedRepoError, 403), "a/b is gated", False),
        (answer(HfHubHTTPError, 429, "slow  down"), "busy: slow down", True),
        (answer(HfHubHTTPError, 403, "storage limit reached"), "no room: storage limit reached", False),
        (answer(HfHubHTTPError, 418), "refused a/b (418)", False),
        (ConnectionError("no route to x?signature=1"), "unreachable (no route to x)", True),
        (LocalEntryNotFoundError("not here"), "unreachable (not here)", False),
        (caused(ValueError("x"), answer(GatedRepoError, 403)), "a/b is gated", False),
    ],
)
def test_each_error_has_its_text(error: Exception, said: str, passes: bool) -> None:
    """A cause counts as well as the error raised of it; what has no text of its own was refused."""
    assert is_of_the_hub(error)
    assert explain("a/b", error, TEXTS) == said
    assert may_pass(error) == passes


def test_mistakes_of_ours_are_not_the_hubs() -> None:
    """They keep their traceback."""
    assert not is_of_the_hub(KeyError("x"))
    assert not is_of_the_hub(ValueError("x"))


def test_tokens_are_hidden_in_messages_and_found_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut token is hidden too; a function's name in a file is no token."""
    monkeypatch.setenv("HF_TOKEN", "secret-of-mine")
    token = "hf_" + "a" * 34
    assert redact(f"with {token}, {token[:12]} and secret-of-mine") == "with hf_***, hf_*** and ***"
    assert redact("https://me:pw@x/y?token=abc&a=1") == "https://***@x/y?token=***&a=1"
    assert holds_token(f"token: {token}".encode())
    assert not holds_token(b"from huggingface_hub import hf_hub_download")
