"""Tokenizers and image processors of checkpoint folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gqkva_convert.errors import DataError, first_line

# Share of tokens with the same number from which on two vocabularies are one.
_SHARED_TOKENS = 0.99


def load_processor(folder: Path, auto: str) -> Any:
    """Load a folder's tokenizer or image processor, by the name of its Auto class; no code of it is run.

    Raises:
        DataError: It does not load.
    """
    import transformers

    try:
        return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=False)
    except ImportError as error:
        # Some versions of transformers want torchvision for the Auto class alone.
        pil = _pil_processor(folder) if auto == "AutoImageProcessor" else None
        if pil is not None:
            return pil
        raise DataError(
            f"{folder}: its {auto.removeprefix('Auto')} does not load: {first_line(error)}"
        ) from error
    except Exception as error:  # transformers raises many kinds
        raise DataError(
            f"{folder} has no {auto.removeprefix('Auto').lower()} that loads "
            f"({type(error).__name__}); data need the one the model was trained with"
        ) from error


def has_other_tokens(first: Path, second: Path) -> bool:
    """Return whether two folders' tokenizers number tokens differently; false where one does not load.

    A few tokens may differ: some models rename tokens that their base left free.
    """
    files = [folder / "tokenizer.json" for folder in (first, second)]
    if all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes():
        return False
    try:
        ours, theirs = (load_processor(folder, "AutoTokenizer").get_vocab() for folder in (first, second))
    except DataError:
        return False
    shared: int = sum(theirs.get(token) == number for token, number in ours.items())
    return shared < _SHARED_TOKENS * max(len(ours), len(theirs))


def _pil_processor(folder: Path) -> Any:
    """Load the image processor that a folder names, in the form that needs Pillow alone, if there is one."""
    import json

    import transformers

    try:
        name = json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"]
        kind = getattr(transformers, f"{str(name).removesuffix('Fast')}Pil")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return kind.from_pretrained(folder)
