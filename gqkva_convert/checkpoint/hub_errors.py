"""Errors of the Hub and of the network: told apart, and said in one line that holds no token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from traceback import walk_tb

from gqkva_convert.errors import first_line

# What huggingface_hub talks through, depending on its version; their errors have no common base with ours.
HTTP_LIBRARIES = {"httpx", "httpx2", "httpcore", "httpcore2", "requests"}
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
# What a missing or misshapen part of an answer leads to.
_WRONG_FORM = (LookupError, TypeError, AttributeError)
_BY_STATUS = {402: "room", 403: "forbidden", 409: "changed", 413: "room", 429: "busy"}
# In messages, which may cut a token short, whatever looks like one is hidden.
_LIKE_A_TOKEN = re.compile(r"\b(hf|api_org|hf_oauth|hf_jwt)_[A-Za-z0-9._-]{6,}")
# Names and passwords in addresses, and what their queries call a token.
_IN_ADDRESSES = re.compile(r"(?<=://)[^/\s@]+(?=@)|(?<=token=)[^&\s'\"]+")
# In files, names such as hf_hub_download are no tokens.
_TOKEN = re.compile(rb"\b(?:hf_[A-Za-z0-9]{30,}|(?:api_org|hf_oauth|hf_jwt)_[A-Za-z0-9._-]{20,})")


def redact(text: str) -> str:
    """Hide what looks like a token, passwords in addresses, and the token in use."""
    from huggingface_hub import get_token

    token = get_token()
    if token and len(token) > 5:
        text = text.replace(token, "***")
    return _IN_ADDRESSES.sub("***", _LIKE_A_TOKEN.sub(r"\1_***", text))


def holds_token(content: bytes) -> bool:
    """Tell whether the content of a file holds a token."""
    return _TOKEN.search(content) is not None


def explain(repo: str, error: BaseException, texts: Mapping[str, str]) -> str:
    """Say why the Hub did not do what was asked, and what to do.

    Args:
        repo: The repository.
        error: What was raised.
        texts: By `_trouble`, texts with places for ``repo``, ``status``, ``own`` (what the first cause says),
            ``words`` (what the Hub says) and ``said`` (the same behind a colon); ``refused`` for all others.
    """
    words = _server_words(error)
    text = texts.get(_trouble(error, words), texts["refused"])
    said = f": {words}" if words else ""
    status = _status(error) or "no answer"
    return redact(text.format(repo=repo, status=status, own=_own_words(error), words=words, said=said))


def _trouble(error: BaseException, words: str) -> str:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        SafetensorsParsingError,
    )

    status = _status(error)

    def is_a(kind: type[BaseException]) -> bool:
        return any(isinstance(cause, kind) for cause in _causes(error))

    if status == 401 and not is_a(GatedRepoError) and not is_a(RepositoryNotFoundError):
        return "token"
    kinds: dict[type[BaseException], str] = {
        HFValidationError: "name",
        GatedRepoError: "gated",
        RevisionNotFoundError: "revision",
        RepositoryNotFoundError: "absent",
        LocalEntryNotFoundError: "unreachable",
        EntryNotFoundError: "entry",
        SafetensorsParsingError: "damaged",
    }
    found = next((name for kind, name in kinds.items() if is_a(kind)), None)
    if found is not None:
        return found
    if re.search(r"storage|quota|limit reached", words, re.IGNORECASE):
        return "room"
    if status is not None:
        return "fails" if status >= 500 else _BY_STATUS.get(status, "refused")
    return "unreachable" if may_pass(error) else "other"


def is_of_the_hub(error: Exception) -> bool:
    """Tell whether an error is the Hub's or the network's, and not a mistake of ours."""
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, SafetensorsParsingError

    for cause in _causes(error):
        if isinstance(cause, (OSError, HFValidationError, LocalTokenNotFoundError, SafetensorsParsingError)):
            return True
        if _home(cause) in (*HTTP_LIBRARIES, "hf_xet"):
            return True
        # What huggingface_hub raises for answers of a wrong form, and hf_xet for whatever it meets.
        if isinstance(cause, (*_WRONG_FORM, ValueError, RuntimeError)) and _came_through_hub(cause):
            return True
    return False


def may_pass(error: BaseException) -> bool:
    """Tell whether the same request may well succeed a little later."""
    status = _status(error)
    if status is not None:
        return status in _PASSING
    return any(
        _home(cause) in HTTP_LIBRARIES
        or isinstance(cause, (ConnectionError, TimeoutError))
        or (isinstance(cause, RuntimeError) and _came_through_hub(cause))
        for cause in _causes(error)
    )


def what_happened(error: BaseException) -> str:
    """Say what came of a request that may be tried again."""
    status = _status(error)
    if status is not None:
        return f"the Hub answered {status}"
    return redact(f"the connection to the Hub broke ({_own_words(error)})")


def _own_words(error: BaseException) -> str:
    """Return what the first cause of an error says, without signatures in addresses of storage."""
    *_, first = _causes(error)
    if isinstance(first, (*_WRONG_FORM, ValueError)):
        return f"an answer of another form than expected, {type(first).__name__} {first_line(first)}"[:200]
    return re.sub(r"\?\S+", "", first_line(first))[:200]


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _status(error: BaseException) -> int | None:
    """Return the status of the answer that an error is about."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if response is not None:
            return int(response.status_code)
    return None


def _home(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def _came_through_hub(error: BaseException) -> bool:
    """Tell whether an error was raised in the Hub's libraries, or in what they called."""
    return any(
        frame.f_globals.get("__name__", "").partition(".")[0] in ("huggingface_hub", "hf_xet")
        for frame, _ in walk_tb(error.__traceback__)
    )


def _server_words(error: BaseException) -> str:
    found = (getattr(cause, "server_message", None) for cause in _causes(error))
    return " ".join(str(next(filter(None, found), "")).split())[:300]
