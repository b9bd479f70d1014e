"""Duties of publishing a derived model under some licences, as data.

Pointers for a person who then reads the licence; not legal advice. Identifiers are those of the Hub's model
cards. Each entry names the place that says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

_FILES = ("LICENSE*", "LICENCE*", "COPYING*")
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Licence:
    """One licence or a kind of them.

    Attributes:
        ids: Patterns of the Hub's identifiers.
        asks: Duties of the publisher of a derived model; empty where keeping its text is enough.
        source: Place of these terms.
        forbids: Whether it does not let derived models be published.
        prefix: Required beginning of the name of a derived model.
        notice: Line that has to be shown.
        text: Pattern of its text, to recognise a LICENSE file.
    """

    ids: tuple[str, ...]
    asks: str = ""
    source: str = ""
    forbids: bool = False
    prefix: str | None = None
    notice: str | None = None
    text: str | None = None


def _llama(version: str, page: str, notice: str, prefix: str) -> Licence:
    return Licence(
        (f"llama{version}",),
        f"give its text and the Notice file along, show {notice!r}, keep to its use policy",
        f"https://www.llama.com/{page}/license/, 1.b",
        prefix=prefix,
        notice=notice,
        text=rf"LLAMA {re.escape(version)} COMMUNITY LICENSE",
    )


# First match wins.
LICENCES = (
    Licence(
        ("*-nd", "*-nd-*"),
        "derived models must not be shared",
        "https://creativecommons.org/licenses/by-nd/4.0/legalcode, 2.a.1.B",
        forbids=True,
        text=r"No[- ]?Deriv(ative|ative Work)?s",
    ),
    Licence(
        ("llama2",),
        "give its text and the Notice file along, keep to its use policy",
        "https://ai.meta.com/llama/license/, 1.b",
        text=r"LLAMA 2 COMMUNITY LICENSE",
    ),
    _llama("3.1", "llama3_1", "Built with Llama", "Llama"),
    _llama("3.2", "llama3_2", "Built with Llama", "Llama"),
    _llama("3.3", "llama3_3", "Built with Llama", "Llama"),
    _llama("4", "llama4", "Built with Llama", "Llama"),
    _llama("3", "llama3", "Built with Meta Llama 3", "Llama 3"),
    Licence(
        ("gemma",),
        "give its terms along, pass its use restrictions on, say that files were changed",
        "https://ai.google.dev/gemma/terms, 3.1",
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms",
        text=r"Gemma Terms of Use",
    ),
    Licence(
        ("*openrail*", "*-rail-*"),
        "pass its use restrictions on to everyone who gets the model",
        "https://huggingface.co/spaces/bigscience/license, 4 and attachment A",
        text=r"\bOpenRAIL|Responsible AI License",
    ),
    Licence(
        ("cc-by-nc-sa*",),
        "no commercial use, and the same licence for what is derived",
        "https://creativecommons.org/licenses/by-nc-sa/4.0/legalcode, 2.a.1 and 3.b",
    ),
    Licence(
        ("cc-by-nc*", "*noncommercial*"),
        "no commercial use",
        "https://creativecommons.org/licenses/by-nc/4.0/legalcode, 2.a.1",
        text=r"Attribution-NonCommercial",
    ),
    Licence(
        ("cc-by-sa*",),
        "the same licence for what is derived",
        "https://creativecommons.org/licenses/by-sa/4.0/legalcode, 3.b",
        text=r"Attribution-ShareAlike",
    ),
    Licence(
        ("agpl*", "gpl*", "lgpl*"),
        "the same licence for what is derived",
        "https://www.gnu.org/licenses/gpl-3.0.html, 5.c",
    ),
    Licence(("apache-2.0",), text=r"Apache License\s+Version 2\.0"),
    Licence(("mit",), text=r"\bMIT License\b"),
    Licence(
        (
            "bsd*",
            "isc",
            "cc0-1.0",
            "cc-by-[0-9].[0-9]",
            "unlicense",
            "zlib",
            "afl-3.0",
            "artistic-2.0",
            "pddl",
        )
    ),
)


@dataclass(frozen=True)
class FoundLicence:
    """Facts about a source's licence.

    Attributes:
        ids: Identifiers, lower case; empty where none is stated.
        name: Its name where the identifier is ``other``.
        link: Address of its text.
        where: File or card that states it.
    """

    ids: tuple[str, ...] = ()
    name: str | None = None
    link: str | None = None
    where: str = "nothing"


def find_licence(card: dict[str, Any] | None, folder: Path) -> FoundLicence:
    """Find the licence in a source's card, or else in a LICENSE file of the folder."""
    stated = (card or {}).get("license")
    ids = tuple(name.lower() for name in ([stated] if isinstance(stated, str) else stated or ()))
    if ids:
        name, link = ((card or {}).get(key) for key in ("license_name", "license_link"))
        return FoundLicence(ids, _str(name), _str(link), "the source's card")
    for path in sorted(path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()):
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES).decode("utf-8", errors="replace")
        for licence in LICENCES:
            if licence.text and re.search(licence.text, text, re.IGNORECASE):
                # A kind of licences is no identifier; its file is named instead.
                exact = "*" not in licence.ids[0]
                name = None if exact else ("no-derivatives" if licence.forbids else path.name)
                link = None if exact else path.name
                return FoundLicence((licence.ids[0] if exact else "other",), name, link, path.name)
        return FoundLicence(("other",), path.name, path.name, path.name)
    return FoundLicence()


def matching(found: FoundLicence) -> list[Licence]:
    """Return the table entries that a licence's identifiers or name match."""
    names = [*found.ids, *([found.name.lower()] if found.name else [])]
    entries = [next((e for e in LICENCES if any(fnmatch(name, i) for i in e.ids)), None) for name in names]
    if found.name and re.search(r"no[-_ ]?deriv", found.name, re.IGNORECASE):
        entries.append(LICENCES[0])
    return [entry for place, entry in enumerate(entries) if entry and entry not in entries[:place]]


def obstacle(found: FoundLicence) -> str | None:
    """Return why a licence forbids publishing a derived model; None if no known licence forbids it."""
    for entry in matching(found):
        if entry.forbids:
            return (
                f"licence {found.name or ', '.join(found.ids)} ({found.where}): {entry.asks} ({entry.source})"
            )
    return None


def duties(found: FoundLicence, name: str) -> list[str]:
    """Return the duties of publishing under a licence, a line each."""
    if not found.ids:
        return ["the source states no licence; make sure that you may publish what is made from it"]
    entries = matching(found)
    stated = found.name or ", ".join(found.ids)
    lines = [f"licence {stated}: {entry.asks} ({entry.source})" for entry in entries if entry.asks]
    for entry in entries:
        wanted = entry.prefix
        if wanted and not re.sub(r"[-_. ]+", " ", name).lower().startswith(wanted.lower()):
            lines.append(f"licence {stated}: the model's name must begin with {wanted!r}; {name!r} does not")
    if not entries:
        where = f" at {found.link}" if found.link else ""
        lines.append(f"licence {stated} is not one we know; read it{where} before others can see the model")
    return lines


def notices(found: FoundLicence) -> list[str]:
    """Return the notices that a licence requires."""
    return [entry.notice for entry in matching(found) if entry.notice]


def _str(value: Any) -> str | None:
    return value if isinstance(value, str) else None
