"""A tokenizer in a GGUF file, and the tokens that ``tokenizer.json`` lists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqkva_convert.errors import CheckpointError, NotExpressibleError
from gqkva_convert.runtimes.gguf.package import load_gguf

# That converter knows tokenizers by name, many of which cut texts in ways of their own.
WITHOUT = "export without --runtime and try llama.cpp's convert_hf_to_gguf.py on the result"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as a GGUF file describes it.

    Attributes:
        model: llama.cpp's kind: ``gpt2`` (BPE of bytes) or ``llama`` (SentencePiece).
        pre: How text is cut before merging.
        tokens: Text of each token, as many as the model has.
        types: Their `gguf.TokenType`.
        scores: Merged first where highest; nothing where merges are listed.
        special: Merges, special tokens and chat template: a `gguf.SpecialVocab`.
        adds_space: Whether a text begins with a space; None where llama.cpp does not ask.
        notes: Warnings for the user.
    """

    model: str
    pre: str
    tokens: tuple[bytes, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] = ()
    special: Any = None
    adds_space: bool | None = None
    notes: tuple[str, ...] = ()

    def add_to(self, writer: Any) -> None:
        """Write it with a `GGUFWriter`."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        self.special.add_to_gguf(writer, quiet=True)
        if self.adds_space is not None:
            writer.add_add_space_prefix(self.adds_space)


def listed_tokens(
    data: dict[str, Any], folder: Path, size: int
) -> tuple[list[bytes], list[int], tuple[str, ...]]:
    """Return every token's text and type, and notes; unused ids get a placeholder.

    Added tokens behind the model's last one are left out: it has no embedding for them.
    """
    kinds = load_gguf().TokenType
    added = {token["content"] for token in data.get("added_tokens") or ()}
    texts: dict[int, str] = {number: text for text, number in data["model"]["vocab"].items()}
    types = dict.fromkeys(texts, kinds.NORMAL)
    ordinary = [number for number, text in texts.items() if text not in added]
    for token in data.get("added_tokens") or ():
        texts[token["id"]] = token["content"]
        types[token["id"]] = kinds.CONTROL if token.get("special") else kinds.USER_DEFINED
    if not all(type(number) is int and number >= 0 for number in texts):
        raise ValueError("a token's number is not a whole number")
    require_room(folder, max(ordinary, default=-1) + 1, size)
    lost = {number: text for number, text in texts.items() if number >= size}
    every = [texts.get(number, f"[PAD{number}]").encode() for number in range(size)]
    return every, [int(types.get(number, kinds.UNUSED)) for number in range(size)], left_out(lost, size)


def left_out(lost: dict[int, str], size: int) -> tuple[str, ...]:
    """Return a note on the added tokens, by number, that a model of ``size`` tokens lacks."""
    if not lost:
        return ()
    named = ", ".join(f"{lost[number]!r} ({number})" for number in sorted(lost)[:3])
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    return (f"the model has {size} tokens, so that added ones of the tokenizer are left out: {named}{more}",)


def require_room(folder: Path, tokens: int, size: int) -> None:
    """Refuse a tokenizer with more ordinary tokens than the model."""
    if tokens > size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokens} tokens, config.json gives the model {size}; "
            "put the model's own tokenizer there"
        )


def refused(folder: Path, reason: str) -> NotExpressibleError:
    """Return the error for a tokenizer that llama.cpp cannot have, with what to do instead."""
    return NotExpressibleError(f"{folder}: tokenizer.json {reason}; {WITHOUT}")
