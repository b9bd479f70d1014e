"""Describe the machine, the file system, and the version of everything that ran."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

PACKAGES = ("gqkva-convert", "numpy", "safetensors", "transformers", "torch")


def describe_machine(folder: Path) -> dict[str, str]:
    """Describe the machine, and the file system that holds ``folder``."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "memory": f"{int(found[1]) * 1024 / 1e9:.1f} GB" if found else "unknown",
        "kernel": f"{platform.system()} {platform.release()}",
        "filesystem": _output(["df", "--output=fstype", str(folder)]).splitlines()[-1].strip(),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def describe_versions(mergekit: Path | None) -> dict[str, str]:
    """Return versions of this environment, of mergekit's, of `cp`, and the commit of the working tree."""
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    here = Path(__file__).parent
    versions["commit"] = _output(["git", "-C", str(here), "describe", "--always", "--dirty"]).strip()
    versions["cp"] = _output(["cp", "--version"]).splitlines()[0]
    if mergekit is not None:
        names = ("mergekit", "torch", "transformers")
        code = f"from importlib.metadata import version; print(*map(version, {names}))"
        own, torch, transformers = _output([str(mergekit), "-c", code]).split()
        versions["mergekit"] = f"{own} (torch {torch}, transformers {transformers})"
    return versions


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.processor()


def _output(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
