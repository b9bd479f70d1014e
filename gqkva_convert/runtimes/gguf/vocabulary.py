"""A folder's tokenizer as llama.cpp reads it, or why it cannot.

``gguf.SpecialVocab`` reads merges, special tokens and the chat template, ``gguf.SentencePieceVocab`` a lone
``tokenizer.model``. Tokens of ``tokenizer.json`` are read here: ``gguf.BpeVocab`` refuses added tokens that
leave gaps and takes those inside the vocabulary for ordinary ones, and ``gguf.LlamaHfVocab`` gives every
token the same score, by which llama.cpp would merge from left to right.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.jsonfile import read_json, write_json
from gqkva_convert.checkpoint.sidecars import carried_files, copy_files
from gqkva_convert.errors import CheckpointError, NotExpressibleError, first_line
from gqkva_convert.modeling.quiet import quiet
from gqkva_convert.runtimes.gguf.package import load_gguf

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_OTHER_TOKENIZERS = ("vocab.json", "vocab.txt", "spiece.model", "merges.txt", "tekken.json")
# That converter knows tokenizers by name, many of which cut texts in ways of their own.
_WITHOUT = "export without --runtime and try llama.cpp's convert_hf_to_gguf.py on the result"

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# What an added token of tokenizer.json may do to the text beside it.
_GREEDY = ("lstrip", "rstrip", "single_word")
# Of tokens that no merge makes: after all that one makes.
_UNMERGED = -1e6

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
    """llama.cpp's names for one way to cut texts before merging.

    Attributes:
        merging: Where words are always merged from bytes; None where it has no such name.
        whole: Where words that are tokens are taken as they are (``ignore_merges``).
    """

    merging: str | None
    whole: str | None = None


# As tokenizer.json says it.
_CUTS: dict[tuple[str, ...], _Cut] = {
    ("gpt-2",): _Cut("gpt-2"),
    ("digits", "gpt-2"): _Cut("starcoder"),
    (f"split {_LLAMA3}", "bytes"): _Cut("dbrx", "llama-bpe"),
    (f"split {_QWEN2}", "bytes"): _Cut("qwen2"),
    (f"split {_TEKKEN}", "bytes"): _Cut(None, "tekken"),
    **{(f"split {pattern}", "bytes"): _Cut("gpt-2") for pattern in _GPT2},
}


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer.

    Attributes:
        model: llama.cpp's kind: ``gpt2`` (BPE of bytes) or ``llama`` (SentencePiece).
        pre: How text is cut before merging.
        tokens: Text of each token, as many as the model has.
        types: Their `gguf.TokenType`.
        scores: Merged first where highest; nothing where merges are listed.
        special: Merges, special tokens and chat template: a `gguf.SpecialVocab`.
        adds_space: Whether a text begins with a space; None where llama.cpp does not ask.
        notes: What a user should know.
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
        """Give it to a `GGUFWriter`."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        self.special.add_to_gguf(writer, quiet=True)
        if self.adds_space is not None:
            writer.add_add_space_prefix(self.adds_space)


def read_vocabulary(folder: Path, config: dict[str, Any]) -> Vocabulary:
    """The tokenizer of a checkpoint folder.

    Files are read where they lie in the folder; links out of it are not followed, and no code is run.

    Args:
        folder: The checkpoint.
        config: The configuration to be exported; names special tokens and how many tokens there are.

    Raises:
        NotExpressibleError: llama.cpp would divide texts otherwise.
        CheckpointError: The tokenizer's files are damaged.
    """
    carried, _ = carried_files(folder)
    files = {name: path for name, path in carried.items() if name in _FILES or name.endswith(".jinja")}
    if "tokenizer.json" in files:
        files.pop("tokenizer.model", None)  # transformers, too, reads the first where both are there
    size = config["vocab_size"]
    if not files.keys() & {"tokenizer.json", "tokenizer.model"}:
        other = next((name for name in _OTHER_TOKENIZERS if name in carried), None)
        if other is not None:
            raise NotExpressibleError(
                f"{folder}: the tokenizer is stored as {other} without tokenizer.json; load it in "
                "transformers and save it again there"
            )
        # llama.cpp loads a file without a vocabulary, and ends with an assertion at the first text.
        raise CheckpointError(
            f"{folder} has no tokenizer, which a GGUF file contains; put tokenizer.json there"
        )
    read = _read_json if "tokenizer.json" in files else _read_sentencepiece
    try:
        with _copied(files, config) as copy, quiet("gguf", logging.CRITICAL):
            return read(copy, folder, size)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: the tokenizer's files are damaged: {first_line(error)}; download them again"
        ) from error


@contextmanager
def _copied(files: dict[str, Path], config: dict[str, Any]) -> Iterator[Path]:
    """A folder of nothing but the tokenizer and the configuration, for classes that look around in it."""
    with tempfile.TemporaryDirectory(prefix="gqkva-") as name:
        copy = Path(name) / "tokenizer"
        copy.mkdir()
        copy_files(files, copy)
        write_json(copy / "config.json", config)
        yield copy


def _refused(folder: Path, reason: str) -> NotExpressibleError:
    return NotExpressibleError(f"{folder}: tokenizer.json {reason}; {_WITHOUT}")


def _read_json(copy: Path, folder: Path, size: int) -> Vocabulary:
    """A tokenizer that ``tokenizer.json`` describes."""
    data = read_json(copy / "tokenizer.json")
    model = data["model"]
    if model.get("type") != "BPE":
        raise _refused(folder, f"holds a {model.get('type')} model, llama.cpp has its kind of BPE alone")
    if not model.get("merges"):
        raise _refused(folder, "has no merges, without which llama.cpp takes no BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise _refused(folder, f"sets {name}, which llama.cpp does not know")
    path = copy / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    if model.get("byte_fallback"):
        return _with_special(_read_pieces(data, config, folder, size), data, copy, size)
    return _with_special(_read_bytes(data, folder, size), data, copy, size)


def _tokens(data: dict[str, Any], folder: Path, size: int) -> tuple[list[bytes], list[int]]:
    """Every token's text and type; ids that no token has get a placeholder."""
    kinds = load_gguf().TokenType
    texts: dict[int, str] = {number: text for text, number in data["model"]["vocab"].items()}
    types = dict.fromkeys(texts, kinds.NORMAL)
    for token in data.get("added_tokens") or ():
        texts[token["id"]] = token["content"]
        types[token["id"]] = kinds.CONTROL if token.get("special") else kinds.USER_DEFINED
    if not all(type(number) is int and number >= 0 for number in texts):
        raise ValueError("a token's number is not a whole number")
    if max(texts, default=-1) >= size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {max(texts) + 1} tokens, config.json gives the model {size}; "
            "put the model's own tokenizer there"
        )
    every = [texts.get(number, f"[PAD{number}]").encode() for number in range(size)]
    return every, [int(types.get(number, kinds.UNUSED)) for number in range(size)]


def _with_special(vocabulary: Vocabulary, data: dict[str, Any], copy: Path, size: int) -> Vocabulary:
    """The vocabulary with its special tokens, what stands around a text, and its chat template."""
    greedy = [token for token in data.get("added_tokens") or () if any(map(token.get, _GREEDY))]
    if greedy:
        note = f"{len(greedy)} added tokens take spaces beside them or whole words alone, llama.cpp's do not"
        vocabulary = replace(vocabulary, notes=(*vocabulary.notes, note))
    special = load_gguf().SpecialVocab(copy, load_merges=vocabulary.model == "gpt2", n_vocab=size)
    if data:
        around = _around(data.get("post_processor"))
        for place in ("bos", "eos"):
            number = special.special_token_ids.get(place)
            special.add_special_token[place] = number is not None and around.get(place) == number
        special.add_special_token.pop("sep", None)
        lost = {place: number for place, number in around.items() if not special.add_special_token[place]}
        if lost:
            note = ", ".join(f"token {number} as {place}" for place, number in lost.items())
            vocabulary = replace(
                vocabulary,
                notes=(*vocabulary.notes, f"the tokenizer puts {note} around texts, llama.cpp will not"),
            )
    if not all(isinstance(merge, str) and merge.count(" ") == 1 for merge in special.merges):
        raise ValueError("a merge is not a pair of tokens")
    _require_template(special.chat_template)
    return replace(vocabulary, special=special)


def _require_template(template: Any) -> None:
    """One chat template, or several with names; anything else is damage."""
    several = template if isinstance(template, list) else []
    if not all(isinstance(one.get("name"), str) and isinstance(one.get("template"), str) for one in several):
        raise ValueError("chat_template has parts without a name or a text")


def _around(processor: Any) -> dict[str, int]:
    """Numbers of the tokens that a post-processor puts before (bos) and after (eos) a single text."""
    found: dict[str, int] = {}
    if not isinstance(processor, dict):
        return found
    if processor.get("type") == "Sequence":
        for part in processor["processors"]:
            found |= _around(part)
    elif processor.get("type") == "TemplateProcessing":
        single = processor["single"]
        for place, item in (("bos", single[0]), ("eos", single[-1])):
            if "SpecialToken" in item:
                found[place] = processor["special_tokens"][item["SpecialToken"]["id"]]["ids"][0]
    elif processor.get("type") in ("RobertaProcessing", "BertProcessing"):
        found = {"bos": processor["cls"][1], "eos": processor["sep"][1]}
    return found


def _read_bytes(data: dict[str, Any], folder: Path, size: int) -> Vocabulary:
    """BPE of bytes, as GPT-2 has it."""
    notes = []
    normalizer = (data.get("normalizer") or {}).get("type")
    if normalizer == "NFC":
        notes.append("the tokenizer composes accents (NFC), llama.cpp takes texts as they are")
    elif normalizer is not None:
        raise _refused(folder, f"changes texts by {normalizer}, llama.cpp takes them as they are")
    cut = _CUTS.get(_cut(data.get("pre_tokenizer")))
    if cut is None:
        known = {name for cut in _CUTS.values() for name in (cut.merging, cut.whole) if name}
        raise _refused(
            folder,
            f"cuts texts in a way that is not known to be one of llama.cpp's ({', '.join(sorted(known))}): "
            f"{json.dumps(data.get('pre_tokenizer'))}",
        )
    ignores = bool(data["model"].get("ignore_merges"))
    name = cut.whole if ignores else cut.merging
    if name is None:
        other = cut.merging or cut.whole
        raise _refused(folder, f"has ignore_merges {json.dumps(ignores)}, llama.cpp's {other} not")
    tokens, types = _tokens(data, folder, size)
    return Vocabulary("gpt2", name, tuple(tokens), tuple(types), notes=tuple(notes))


def _cut(pre_tokenizer: Any) -> tuple[str, ...]:
    """A pre-tokenizer in the words of `_CUTS`."""
    if not isinstance(pre_tokenizer, dict):
        return ()
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        return tuple(word for part in pre_tokenizer["pretokenizers"] for word in _cut(part))
    if kind == "ByteLevel" and not pre_tokenizer.get("add_prefix_space"):
        return ("gpt-2" if pre_tokenizer.get("use_regex", True) else "bytes",)
    if kind == "Digits" and pre_tokenizer.get("individual_digits"):
        return ("digits",)
    pattern = (pre_tokenizer.get("pattern") or {}).get("Regex")
    if kind == "Split" and pre_tokenizer.get("behavior") == "Isolated" and not pre_tokenizer.get("invert"):
        return (f"split {pattern}",)
    return (f"unknown {kind}",)


def _read_pieces(data: dict[str, Any], config: dict[str, Any], folder: Path, size: int) -> Vocabulary:
    """SentencePiece's BPE: merges become scores, which llama.cpp merges by."""
    kinds = load_gguf().TokenType
    adds_space = _adds_space(data)
    if adds_space is None:
        described = json.dumps({name: data.get(name) for name in ("normalizer", "pre_tokenizer")})
        raise _refused(folder, f"prepares texts in a way that llama.cpp does not: {described}")
    vocab = data["model"]["vocab"]
    tokens, types = _tokens(data, folder, size)
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
    missing = _unlisted(vocab, types, {(left, right) for left, right in pairs})
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
        notes=tuple(notes),
    )


def _spares_spaces(data: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether texts that begin with a space get no other, as under Metaspace and in transformers' Llamas."""
    is_metaspace = (data.get("pre_tokenizer") or {}).get("type") == "Metaspace"
    return is_metaspace or str(config.get("tokenizer_class")).startswith("LlamaTokenizer")


def _unlisted(vocab: dict[str, int], types: list[int], pairs: set[tuple[str, str]]) -> int:
    """Pairs of tokens that make a token though no merge says so; llama.cpp merges them."""
    normal = int(load_gguf().TokenType.NORMAL)
    words = {text for text, number in vocab.items() if types[number] == normal}
    made = {left + right for left, right in pairs}
    reached = {text for text in words if len(text) == 1 or text in made}
    return sum(
        (text[:cut], text[cut:]) not in pairs
        for text in words
        for cut in range(1, len(text))
        if text[:cut] in reached and text[cut:] in reached
    )


def _adds_space(data: dict[str, Any]) -> bool | None:
    """Whether texts get a space in front; None for a preparation that llama.cpp has not."""
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


def _read_sentencepiece(copy: Path, folder: Path, size: int) -> Vocabulary:
    """A lone ``tokenizer.model``."""
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
            f"{folder}: tokenizer.model is no BPE, which llama.cpp has alone; {_WITHOUT}"
        )
    found = list(gguf.vocab.SentencePieceVocab(copy).all_tokens())
    if len(found) > size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {len(found)} tokens, config.json gives the model {size}; "
            "put the model's own tokenizer there"
        )
    gaps = [
        (f"[PAD{number}]".encode(), _UNMERGED, gguf.TokenType.UNUSED) for number in range(len(found), size)
    ]
    tokens, scores, types = zip(*found, *gaps, strict=True)
    vocabulary = Vocabulary(
        "llama",
        "default",
        tokens,
        tuple(int(kind) for kind in types),
        scores,
        adds_space=bool(stored.normalizer_spec.add_dummy_prefix),
    )
    return _with_special(vocabulary, {}, copy, size)
