"""Byte-pair encoding of bytes, as GPT-2 has it, from ``tokenizer.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqkva_convert.runtimes.gguf.vocabulary import Vocabulary, listed_tokens, refused

_GPT2 = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_ENDING = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _CONTRACTIONS + r"\p{N}{1,3}" + _ENDING
_QWEN2 = _CONTRACTIONS + r"\p{N}" + _ENDING


@dataclass(frozen=True)
class _Cut:
    """llama.cpp's names for one way to pre-tokenize.

    Attributes:
        merging: Without ``ignore_merges``; None if llama.cpp has no such name.
        whole: With ``ignore_merges``: pre-tokens that are in the vocabulary are not merged from bytes.
    """

    merging: str | None
    whole: str | None = None


# By the parts of tokenizer.json's pre-tokenizer.
_CUTS: dict[tuple[str, ...], _Cut] = {
    ("gpt-2",): _Cut("gpt-2"),
    ("digits", "gpt-2"): _Cut("starcoder"),
    (f"split {_LLAMA3}", "bytes"): _Cut("dbrx", "llama-bpe"),
    (f"split {_QWEN2}", "bytes"): _Cut("qwen2"),
    (f"split {_TEKKEN}", "bytes"): _Cut(None, "tekken"),
    **{(f"split {pattern}", "bytes"): _Cut("gpt-2") for pattern in _GPT2},
}


def read_byte_pairs(data: dict[str, Any], folder: Path, size: int) -> Vocabulary:
    """Read a BPE of bytes, as GPT-2 has it."""
    notes = []
    normalizer = (data.get("normalizer") or {}).get("type")
    if normalizer == "NFC":
        notes.append("the tokenizer composes accents (NFC), llama.cpp takes texts as they are")
    elif normalizer is not None:
        raise refused(folder, f"changes texts by {normalizer}, llama.cpp takes them as they are")
    cut = _CUTS.get(_cut(data.get("pre_tokenizer")))
    if cut is None:
        known = {name for cut in _CUTS.values() for name in (cut.merging, cut.whole) if name}
        raise refused(
            folder,
            f"cuts texts in a way that is not known to be one of llama.cpp's ({', '.join(sorted(known))}): "
            f"{json.dumps(data.get('pre_tokenizer'))}",
        )
    ignores = bool(data["model"].get("ignore_merges"))
    name = cut.whole if ignores else cut.merging
    if name is None:
        other = cut.merging or cut.whole
        raise refused(folder, f"has ignore_merges {json.dumps(ignores)}, llama.cpp's {other} not")
    tokens, types, lost = listed_tokens(data, folder, size)
    return Vocabulary("gpt2", name, tuple(tokens), tuple(types), notes=(*notes, *lost))


def _cut(pre_tokenizer: Any) -> tuple[str, ...]:
    """Return a pre-tokenizer as a key of `_CUTS`."""
    if not isinstance(pre_tokenizer, dict):
        return ()
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        return tuple(name for part in pre_tokenizer["pretokenizers"] for name in _cut(part))
    if kind == "ByteLevel" and not pre_tokenizer.get("add_prefix_space"):
        return ("gpt-2" if pre_tokenizer.get("use_regex", True) else "bytes",)
    if kind == "Digits" and pre_tokenizer.get("individual_digits"):
        return ("digits",)
    pattern = (pre_tokenizer.get("pattern") or {}).get("Regex")
    if kind == "Split" and pre_tokenizer.get("behavior") == "Isolated" and not pre_tokenizer.get("invert"):
        return (f"split {pattern}",)
    return (f"unknown {kind}",)
