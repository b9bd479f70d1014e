"""SentencePiece's byte-pair encoding, from ``tokenizer.json``, or ``tokenizer.model`` alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from gqkva_convert.errors import NotExpressibleError
from gqkva_convert.runtimes.gguf.package import load_gguf
from gqkva_convert.runtimes.gguf.vocabulary import (
    WITHOUT,
    Vocabulary,
    left_out,
    listed_tokens,
    refused,
    require_room,
)

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Of tokens that no merge makes: after all that one makes.
_UNMERGED = -1e6


def read_pieces(data: dict[str, Any], config: dict[str, Any], folder: Path, size: int) -> Vocabulary:
    """Read SentencePiece's BPE: merges become scores, which llama.cpp merges by."""
    kinds = load_gguf().TokenType
    adds_space = _adds_space(data)
    if adds_space is None:
        described = json.dumps({name: data.get(name) for name in ("normalizer", "pre_tokenizer")})
        raise refused(folder, f"prepares texts in a way that llama.cpp does not: {described}")
    vocab = data["model"]["vocab"]
    tokens, types, left = listed_tokens(data, folder, size)
    for text, number in vocab.items():
        if _BYTE.fullmatch(text):
            types[number] = int(kinds.BYTE)
    unknown = vocab.get(data["model"].get("unk_token"))
    if unknown is not None:
        types[unknown] = int(kinds.UNKNOWN)
    pairs = [
        tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in data["model"]["merges"]
    ]
    scores = [0.0 if len(token.decode()) == 1 else _UNMERGED for token in tokens]
    seen: set[str] = set()
    last, in_order = "", True
    for rank, (left, right) in enumerate(pairs):
        made = left + right
        if made not in seen:
            seen.add(made)
            scores[vocab[made]] = -float(rank)
        elif made != last:
            in_order = False
        last = made
    notes = []
    missing = _count_unlisted(vocab, types, {(left, right) for left, right in pairs})
    if missing or not in_order:
        what = (
            f"{missing} pairs that make a token are no merges" if missing else "merges of a token stand apart"
        )
        notes.append(f"llama.cpp may divide some words differently: {what} in tokenizer.json")
    lost = 256 - types.count(int(kinds.BYTE))
    if lost:
        notes.append(
            f"the vocabulary lacks {lost} of 256 bytes: llama.cpp ends with an error at a character that is "
            "no token"
        )
    if adds_space and _spares_spaces(data, config):
        notes.append("llama.cpp puts a space before texts that begin with one, too, as SentencePiece does")
    return Vocabulary(
        "llama",
        "default",
        tuple(tokens),
        tuple(types),
        tuple(scores),
        adds_space=adds_space,
        notes=(*notes, *left),
    )


def _spares_spaces(data: dict[str, Any], config: dict[str, Any]) -> bool:
    """Return whether texts that begin with a space get no other (Metaspace, transformers' Llamas)."""
    is_metaspace = (data.get("pre_tokenizer") or {}).get("type") == "Metaspace"
    return is_metaspace or str(config.get("tokenizer_class")).startswith("LlamaTokenizer")


def _count_unlisted(vocab: dict[str, int], types: list[int], pairs: set[tuple[str, str]]) -> int:
    """Count pairs of tokens that make a token though no merge says so; llama.cpp merges them."""
    normal = int(load_gguf().TokenType.NORMAL)
    texts = {text for text, number in vocab.items() if types[number] == normal}
    made = {left + right for left, right in pairs}
    reached = {text for text in texts if len(text) == 1 or text in made}
    return sum(
        (text[:cut], text[cut:]) not in pairs
        for text in texts
        for cut in range(1, len(text))
        if text[:cut] in reached and text[cut:] in reached
    )


def _adds_space(data: dict[str, Any]) -> bool | None:
    """Return whether texts get a space in front; None for a preparation that llama.cpp lacks."""
    normalizer, pre_tokenizer = data.get("normalizer"), data.get("pre_tokenizer")
    if normalizer is None and isinstance(pre_tokenizer, dict):
        scheme = pre_tokenizer.get("prepend_scheme", "always")
        is_plain = (
            pre_tokenizer.get("type") == "Metaspace"
            and pre_tokenizer.get("replacement") == _SPACE
            and not pre_tokenizer.get("split", True)
        )
        return bool(scheme in ("always", "first")) if is_plain else None
    if not isinstance(normalizer, dict):
        return None
    parts = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    # A cut at spaces that keeps them with the word before changes nothing once there are no spaces left.
    if pre_tokenizer is not None and (
        pre_tokenizer.get("type") != "Split" or pre_tokenizer.get("pattern") != {"String": " "}
    ):
        return None
    if parts == [{"type": "Prepend", "prepend": _SPACE}, replaces]:
        return True
    return False if parts == [replaces] else None


def read_sentencepiece(copy: Path, folder: Path, size: int) -> Vocabulary:
    """Read a ``tokenizer.model`` without tokenizer.json."""
    gguf = load_gguf()
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise NotExpressibleError(
            f"{folder}: reading tokenizer.model needs sentencepiece and protobuf; "
            "pip install 'gqkva-convert[gguf]', or save tokenizer.json with transformers"
        ) from error
    stored = sentencepiece_model_pb2.ModelProto()
    stored.ParseFromString((copy / "tokenizer.model").read_bytes())
    if stored.trainer_spec.model_type != 2:
        raise NotExpressibleError(
            f"{folder}: tokenizer.model is no BPE, which llama.cpp has alone; {WITHOUT}"
        )
    vocab = gguf.vocab.SentencePieceVocab(copy)
    require_room(folder, vocab.vocab_size_base, size)
    every = list(vocab.all_tokens())
    lost = {number: token[0].decode() for number, token in enumerate(every) if number >= size}
    found = every[:size]
    gaps = [
        (f"[PAD{number}]".encode(), _UNMERGED, gguf.TokenType.UNUSED) for number in range(len(found), size)
    ]
    tokens, scores, types = zip(*found, *gaps, strict=True)
    return Vocabulary(
        "llama",
        "default",
        tokens,
        tuple(int(kind) for kind in types),
        scores,
        adds_space=bool(stored.normalizer_spec.add_dummy_prefix),
        notes=left_out(lost, size),
    )
