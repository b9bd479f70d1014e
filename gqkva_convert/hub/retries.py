"""Requests of a push: temporary failures are retried, anything else becomes an error of one line."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

from gqkva_convert.checkpoint.hub_errors import explain, is_of_the_hub, may_pass, what_happened
from gqkva_convert.errors import GqkvaError, HubError

Answer = TypeVar("Answer")
Say = Callable[[str], None]

# Seconds between tries, on top of what huggingface_hub itself waits for single requests.
WAITS = (2, 10, 30)
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write"
_REFUSALS = {
    "name": "{repo} is no name a Hub repository can have; give USER/NAME",
    "gated": "{repo} is gated; ask for access on its page, with the account of your token",
    "token": f"the Hub does not take the token (401): it is wrong, revoked or expired; {_LOGIN}",
    "revision": "{repo} has no such branch; name one that exists",
    "absent": "there is no model repository {repo}, or the token may not see it; "
    "check the name and the token",
    "room": "the Hub has no room for {repo} ({status}): {words}; free some, or take another plan",
    "forbidden": "the token may not write to {repo} (403){said}; use one of an account that may",
    "changed": "{repo} was changed by someone else meanwhile (409){said}; push again",
    "busy": "the Hub takes no more requests for now (429){said}; push again later, it goes on",
    "fails": "the Hub fails ({status}) at {repo}; push again later, it goes on from what was sent",
    "unreachable": "the Hub cannot be reached ({own}); check the network and push again, "
    "it goes on from what was sent",
    "other": "{repo} cannot be pushed: {own}",
    "refused": "the Hub refused {repo} ({status}){said}",
}


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
    """Make a request to the Hub and retry temporary failures.

    Raises:
        HubError: The Hub did not do it; says why in one line.
    """
    # Its own retries and warnings would mix with our lines.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    for wait in (*WAITS, None) if again else (None,):
        try:
            return request()
        except GqkvaError:
            raise
        except Exception as error:
            if not is_of_the_hub(error):
                raise
            if wait is None or not may_pass(error):
                # The error's own text may hold a token.
                raise HubError(explain(repo, error, _REFUSALS)) from None
            say(f"{what_happened(error)}; trying again in {wait} s")
            time.sleep(wait)
    raise AssertionError("the last try either returns or raises")
