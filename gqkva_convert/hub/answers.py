"""Asking the Hub: what passes is tried again, what does not becomes one line, and no token is ever in it."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from gqkva_convert.checkpoint.hub import HTTP_LIBRARIES
from gqkva_convert.errors import GqkvaError, HubError, first_line

Answer = TypeVar("Answer")
Say = Callable[[str], None]

# Seconds between tries, on top of what huggingface_hub itself waits for single requests.
WAITS = (2, 10, 30)
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_TOKEN = re.compile(r"\b(hf|api_org|hf_oauth|hf_jwt)_[A-Za-z0-9._-]{6,}")
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write"


def redact(text: str) -> str:
    """Text without anything that looks like a token, and without the one that is in use."""
    from huggingface_hub import get_token

    token = get_token()
    if token and len(token) > 5:
        text = text.replace(token, "***")
    return _TOKEN.sub(r"\1_***", text)


def require_token() -> None:
    """Check that there is a token, and that it can be sent at all.

    Raises:
        HubError: There is none, or it holds characters that no token has.
    """
    from huggingface_hub import constants, get_token

    token = get_token()
    if constants.HF_HUB_OFFLINE:
        raise HubError("HF_HUB_OFFLINE is set, so that nothing can be pushed; unset it")
    if token is None:
        raise HubError(f"there is no Hub token; {_LOGIN}")
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise HubError(f"the Hub token holds characters that no token has; {_LOGIN}")


# By hand: huggingface_hub.http_backoff retries one HTTP request; an upload is many of them.
def ask(repo: str, request: Callable[[], Answer], say: Say, *, again: bool = True) -> Answer:
    """Make a request to the Hub, several times where that may help.

    Args:
        repo: Repository it is about.
        request: What to do.
        say: Told why it is tried again.
        again: Whether it may be tried again at all.

    Raises:
        HubError: Why the Hub did not do it, in one line.
    """
    # Its own retries and warnings would stand between our lines.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    for wait in (*WAITS, None) if again else (None,):
        try:
            return request()
        except GqkvaError:
            raise
        except Exception as error:
            if not _is_the_hubs(error):
                raise
            if wait is None or not _passes(error):
                # The error's own text may hold what is left out here.
                raise HubError(redact(explain(repo, error))) from None
            say(redact(f"{_what_happened(error)}; trying again in {wait} s"))
            time.sleep(wait)
    raise AssertionError("the last try either returns or raises")


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _status(error: BaseException) -> int | None:
    """Status of the answer that an error is about."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if response is not None:
            return int(response.status_code)
    return None


def _is_the_hubs(error: Exception) -> bool:
    """Whether an error is the Hub's or the network's, and not a mistake of ours."""
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    for cause in _causes(error):
        home = type(cause).__module__.partition(".")[0]
        if isinstance(cause, (OSError, HFValidationError, LocalTokenNotFoundError)):
            return True
        if home in (*HTTP_LIBRARIES, "hf_xet"):
            return True
        # What huggingface_hub raises for answers of a wrong form, and hf_xet for whatever it meets.
        if isinstance(cause, (ValueError, RuntimeError)) and _raised_by(cause, ("huggingface_hub", "hf_xet")):
            return True
    return False


def _raised_by(error: BaseException, packages: tuple[str, ...]) -> bool:
    trace = error.__traceback__
    last: Any = None
    while trace is not None:
        last, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return str(last).partition(".")[0] in packages


def _passes(error: BaseException) -> bool:
    """Whether the same request may well succeed a little later."""
    status = _status(error)
    if status is not None:
        return status in _PASSING
    for cause in _causes(error):
        home = type(cause).__module__.partition(".")[0]
        if home in HTTP_LIBRARIES or isinstance(cause, (ConnectionError, TimeoutError)):
            return True
        if isinstance(cause, RuntimeError) and _raised_by(cause, ("huggingface_hub", "hf_xet")):
            return True
    return False


def _what_happened(error: BaseException) -> str:
    status = _status(error)
    if status is not None:
        return f"the Hub answered {status}"
    return f"the connection to the Hub broke ({_own_words(error)})"


def explain(repo: str, error: BaseException) -> str:
    """Why the Hub did not do what was asked, and what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    causes = list(_causes(error))
    status, words = _status(error), _server_words(causes)

    def is_a(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if is_a(HFValidationError):
        return f"{repo} is no name a Hub repository can have; give USER/NAME"
    if is_a(GatedRepoError):
        return f"{repo} is gated; ask for access on its page, with the account of your token"
    if status == 401 and not is_a(RepositoryNotFoundError):
        return f"the Hub does not take the token (401): it is wrong, revoked or expired; {_LOGIN}"
    if is_a(RevisionNotFoundError):
        return f"{repo} has no such branch; name one that exists"
    if is_a(RepositoryNotFoundError):
        return (
            f"there is no model repository {repo}, or the token may not see it; check the name and the token"
        )
    if status == 402 or status == 413 or re.search(r"storage|quota|limit reached", words, re.IGNORECASE):
        return (
            f"the Hub has no room for {repo} ({status}): {words or 'quota'}; free some, or take another plan"
        )
    if status == 403:
        return f"the token may not write to {repo} (403){_said(words)}; use one of an account that may"
    if status == 409:
        return f"{repo} was changed by someone else meanwhile (409){_said(words)}; push again"
    if status == 429:
        return f"the Hub takes no more requests for now (429){_said(words)}; push again later, it goes on"
    if status is not None and status >= 500:
        return f"the Hub fails ({status}) at {repo}; push again later, it goes on from what was sent"
    if status is not None:
        return f"the Hub refused {repo} ({status}){_said(words)}"
    if _passes(error):
        return (
            f"the Hub cannot be reached ({_own_words(error)}); check the network and push again, it goes on "
            "from what was sent"
        )
    return f"{repo} cannot be pushed: {_own_words(error)}"


def _own_words(error: BaseException) -> str:
    """What the first cause of an error says, without the signatures that addresses of storage carry."""
    *_, first = _causes(error)
    return re.sub(r"\?\S+", "", first_line(first))[:200]


def _server_words(causes: list[BaseException]) -> str:
    for cause in causes:
        words = getattr(cause, "server_message", None)
        if words:
            return " ".join(str(words).split())[:300]
    return ""


def _said(words: str) -> str:
    return f": {words}" if words else ""
