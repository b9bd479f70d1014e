"""A folder's tokenizer as llama.cpp reads it, or why it cannot.

``gguf.SpecialVocab`` reads merges, special tokens and the chat template, ``gguf.SentencePieceVocab`` a lone
``tokenizer.model``. Tokens of ``tokenizer.json`` are read here: ``gguf.BpeVocab`` refuses added tokens that
leave gaps and takes those inside the vocabulary for ordinary ones, and ``gguf.LlamaHfVocab`` gives every
token the same score, by which llama.cpp would merge from left to right.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.jsonfile import read_json, write_json
from gqkva_convert.checkpoint.sidecars import carried_files, copy_files
from gqkva_convert.errors import CheckpointError, NotExpressibleError, first_line
from gqkva_convert.modeling.log_levels import quiet
from gqkva_convert.runtimes.gguf.byte_pairs import read_byte_pairs
from gqkva_convert.runtimes.gguf.package import load_gguf
from gqkva_convert.runtimes.gguf.pieces import read_pieces, read_sentencepiece
from gqkva_convert.runtimes.gguf.vocabulary import Vocabulary, refused

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_OTHER_TOKENIZERS = ("vocab.json", "vocab.txt", "spiece.model", "merges.txt", "tekken.json")
# Flags of an added token that change the text beside it.
_GREEDY = ("lstrip", "rstrip", "single_word")


def read_vocabulary(folder: Path, config: dict[str, Any], weights: Collection[Path] = ()) -> Vocabulary:
    """Read the tokenizer of a checkpoint folder.

    Links are followed as in a conversion, and no code is run.

    Args:
        folder: The checkpoint.
        config: The configuration to be exported; names special tokens and the number of tokens.
        weights: The weight files.

    Raises:
        NotExpressibleError: llama.cpp would divide texts differently.
        CheckpointError: The tokenizer's files are damaged.
    """
    carried, _ = carried_files(folder, weights)
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
    try:
        with _copy_tokenizer(files, config) as copy, quiet("gguf", logging.CRITICAL):
            if "tokenizer.json" not in files:
                return _with_special(read_sentencepiece(copy, folder, size), {}, copy, size)
            data = read_json(copy / "tokenizer.json")
            return _with_special(_read_json(data, copy, folder, size), data, copy, size)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: the tokenizer's files are damaged: {first_line(error)}; download them again"
        ) from error


@contextmanager
def _copy_tokenizer(files: dict[str, Path], config: dict[str, Any]) -> Iterator[Path]:
    """Copy the tokenizer and the configuration alone to a folder, for classes that look around in it."""
    with tempfile.TemporaryDirectory(prefix="gqkva-") as name:
        copy = Path(name) / "tokenizer"
        copy.mkdir()
        copy_files(files, copy)
        write_json(copy / "config.json", config)
        yield copy


def _read_json(data: dict[str, Any], copy: Path, folder: Path, size: int) -> Vocabulary:
    """Read a tokenizer that ``tokenizer.json`` describes."""
    model = data["model"]
    if model.get("type") != "BPE":
        raise refused(folder, f"holds a {model.get('type')} model, llama.cpp has its kind of BPE alone")
    if not model.get("merges"):
        raise refused(folder, "has no merges, without which llama.cpp takes no BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise refused(folder, f"sets {name}, which llama.cpp does not know")
    path = copy / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    if model.get("byte_fallback"):
        return read_pieces(data, config, folder, size)
    return read_byte_pairs(data, folder, size)


def _with_special(vocabulary: Vocabulary, data: dict[str, Any], copy: Path, size: int) -> Vocabulary:
    """Add special tokens, tokens around a text, and the chat template to a vocabulary."""
    greedy = [token for token in data.get("added_tokens") or () if any(map(token.get, _GREEDY))]
    if greedy:
        note = f"{len(greedy)} added tokens take spaces beside them or whole words alone, llama.cpp's do not"
        vocabulary = replace(vocabulary, notes=(*vocabulary.notes, note))
    special = load_gguf().SpecialVocab(copy, load_merges=vocabulary.model == "gpt2", n_vocab=size)
    if data:
        around = _tokens_around(data.get("post_processor"))
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
    """Refuse a chat template that is neither one text nor several with names."""
    several = template if isinstance(template, list) else []
    if not all(isinstance(one.get("name"), str) and isinstance(one.get("template"), str) for one in several):
        raise ValueError("chat_template has parts without a name or a text")


def _tokens_around(processor: Any) -> dict[str, int]:
    """Return the tokens that a post-processor puts before (bos) and after (eos) a single text."""
    found: dict[str, int] = {}
    if not isinstance(processor, dict):
        return found
    if processor.get("type") == "Sequence":
        for part in processor["processors"]:
            found |= _tokens_around(part)
    elif processor.get("type") == "TemplateProcessing":
        single = processor["single"]
        for place, item in (("bos", single[0]), ("eos", single[-1])):
            if "SpecialToken" in item:
                found[place] = processor["special_tokens"][item["SpecialToken"]["id"]]["ids"][0]
    elif processor.get("type") in ("RobertaProcessing", "BertProcessing"):
        found = {"bos": processor["cls"][1], "eos": processor["sep"][1]}
    return found
