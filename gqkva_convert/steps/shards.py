"""Division of the output over files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gqkva_convert.checkpoint.folder import SAFETENSORS
from gqkva_convert.errors import UsageError
from gqkva_convert.steps.step import Step, Steps

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class Shard:
    """One output file and the steps that fill it, in file order."""

    file_name: str
    steps: tuple[Step, ...]

    @property
    def nbytes(self) -> int:
        return sum(step.nbytes for step in self.steps)


# By hand: huggingface_hub's is private, accelerate's refuses plain bytes and accepts 0GB.
def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``2GB`` (powers of ten) or ``512MiB`` (powers of two).

    Raises:
        UsageError: It is not a size.
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in _UNITS or float(found[1]) <= 0:
        raise UsageError(f"{text!r} is not a size; write it as 2GB or 512MiB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def make_shards(steps: Steps, files: tuple[Path, ...], max_shard_bytes: int | None) -> tuple[Shard, ...]:
    """Divide the steps over files.

    Args:
        steps: All steps, in source order.
        files: The source's files; without a limit the output has as many, divided alike.
        max_shard_bytes: Most bytes of tensors in a file. A single larger tensor gets a file of its own.
    """
    groups: list[list[Step]] = []
    if max_shard_bytes is None:
        groups = [[step for step in steps.steps if step.source.file == file] for file in files]
        groups = [group for group in groups if group]
    else:
        filled = 0
        for step in steps.steps:
            if not groups or filled + step.nbytes > max_shard_bytes:
                groups.append([])
                filled = 0
            groups[-1].append(step)
            filled += step.nbytes
    if len(groups) == 1:
        return (Shard(SAFETENSORS, tuple(groups[0])),)
    return tuple(
        Shard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", tuple(group))
        for number, group in enumerate(groups, start=1)
    )
