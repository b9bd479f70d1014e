"""The ``gguf`` package, llama.cpp's own, which is installed only where it is wanted."""

from __future__ import annotations

from types import ModuleType

from gqkva_convert.errors import OutputError


def load_gguf() -> ModuleType:
    """Import the package.

    Raises:
        OutputError: It is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise OutputError(
            "--runtime gguf needs the gguf package; pip install 'gqkva-convert[gguf]'"
        ) from error
    return gguf
