"""The files of a folder that belong to the model; everything else stays here."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

from gqkva_convert.checkpoint.folder import PICKLED, SAFETENSORS, Checkpoint
from gqkva_convert.checkpoint.hub_errors import holds_token
from gqkva_convert.checkpoint.modules import MODULES
from gqkva_convert.checkpoint.sidecars import MEASURED, REPORT, folders_beside, is_inside, module_weights
from gqkva_convert.errors import CheckpointError

CARD = "README.md"
# What transformers, sentence-transformers and gqkva read or write beside the weights.
_BELONGS = (
    "config.json",
    REPORT,
    *MEASURED,
    "modeling_gqkva_*.py",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
    "image_processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "vocab-*.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.spm",
    "*.tiktoken",
    "normalizer.json",
    "chat_template.*",
    MODULES,
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "LICENSE*",
    "LICENCE*",
    "COPYING*",
    "NOTICE*",
    "Notice*",
    "USE_POLICY*",
)
_IN_FOLDERS = ("*.jinja", "config.json", "*_config.json", "vocab.txt")
_PICTURES = (".png", ".jpg", ".jpeg", ".svg", ".gif", ".webp")
# Weights that transformers would read instead of, or mix up with, those that are sent.
_OTHER_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")


def choose_files(checkpoint: Checkpoint, card: str) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the files of the model, and why the others are not sent.

    Returns:
        Files to send by relative name, without the card, and reasons for the others by relative name.

    Raises:
        CheckpointError: A file that is needed is a link that leads out of the folder, or one holds a token.
    """
    folder = checkpoint.folder.resolve()
    weights = {path.name for path in checkpoint.files}
    single = PICKLED if checkpoint.pickled else SAFETENSORS
    sent: dict[str, Path] = {}
    left: dict[str, str] = {}
    of_modules = module_weights(folder)
    beside = folders_beside(folder)
    for sub in beside:
        for inner in sorted(sub.iterdir()):
            needed = inner.relative_to(folder).as_posix() in of_modules
            belongs = needed or any(fnmatch(inner.name, pattern) for pattern in _IN_FOLDERS)
            _place(inner, folder, belongs and inner.is_file(), needed, sent, left)
    for path in sorted(folder.iterdir()):
        if any(path == sub or path in sub.parents for sub in beside):
            continue
        needed = path.name in weights or path.name == "config.json"
        needed = needed or (path.name == f"{single}.index.json" and single not in weights)
        belongs = path.is_file() and (
            needed
            or any(fnmatch(path.name, pattern) for pattern in _BELONGS)
            or (path.suffix.lower() in _PICTURES and path.name in card)
        )
        if path.name != CARD:
            _place(path, folder, belongs, needed, sent, left)
    for name, path in sent.items():
        if name not in weights:
            refuse_tokens(path.read_bytes(), str(path))
    return sent, left


def _place(
    path: Path, folder: Path, belongs: bool, needed: bool, sent: dict[str, Path], left: dict[str, str]
) -> None:
    name = path.relative_to(folder).as_posix()
    if belongs and not path.name.startswith(".") and not is_inside(path, folder):
        raise CheckpointError(f"{path} is a link that leads out of the folder; put the file itself there")
    if path.name.startswith("."):
        left[name] = "hidden"
    elif not belongs:
        left[name] = "a folder that no model reads" if path.is_dir() else "no file that a model is made of"
    else:
        sent[name] = path


def refuse_tokens(content: bytes, where: str) -> None:
    """Refuse to send text that holds a Hub token.

    Raises:
        CheckpointError: It does.
    """
    if holds_token(content):
        raise CheckpointError(
            f"{where} holds what looks like a Hub token (hf_...); remove it there, and revoke the token if "
            "others may have seen it"
        )


def stale_weights(there: set[str], sent: set[str]) -> list[str]:
    """Return weight files of an earlier push that would be read in place of those sent."""
    return sorted(name for name in there - sent if _OTHER_WEIGHTS.fullmatch(name))
