"""The cache folder: what killed processes left unfinished goes, what others write stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gqkva_convert.checkpoint.cache import make_cache, unfinished


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked up in /proc")
def test_unfinished_files_of_processes_that_are_gone_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache is never looked at; what a kill leaves there would stay for good."""
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path))
    code = (
        "from gqkva_convert.checkpoint.cache import make_cache, unfinished; folder = make_cache('x')\n"
        "(folder / unfinished('a')).touch(); (folder / unfinished('b')).mkdir(); (folder / 'done').touch()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(list((tmp_path / "x").iterdir())) == 3
    (tmp_path / "x" / unfinished("mine")).touch()
    other = unfinished("a").replace(str(os.getpid()), "999999999").replace(os.uname().nodename, "elsewhere")
    (tmp_path / "x" / other).touch()
    folder = make_cache("x")
    assert {path.name for path in folder.iterdir()} == {"done", unfinished("mine"), other}
