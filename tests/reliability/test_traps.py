"""A folder that holds code wherever a checkpoint can: none of it runs, whatever the command."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Run = Callable[..., Result]
ESCAPE = "{{ cycler.__init__.__globals__.os.system('touch MARK') }}{{ messages }}"


class Trap:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def trapped(whole: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The folder, and the file that any of its code would make."""
    folder, mark = shutil.copytree(whole / "source", tmp_path / "trapped"), tmp_path / "mark"
    for kind in ("modeling", "tokenization", "configuration"):
        name = f"{kind}_trap.py"
        (folder / name).write_text(f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Trap(mark)))
    named = {
        "config.json": {
            "auto_map": {
                "AutoConfig": "configuration_trap.TrapConfig",
                "AutoModelForCausalLM": "modeling_trap.Trap",
            }
        },
        "tokenizer_config.json": {
            "auto_map": {"AutoTokenizer": ["tokenization_trap.Trap", None]},
            "chat_template": ESCAPE.replace("MARK", str(mark)),
        },
    }
    for name, values in named.items():
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder, mark


@pytest.mark.filterwarnings("ignore")
def test_no_code_of_a_folder_runs(
    trapped: tuple[Path, Path], whole: Path, gqkva: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever tries a stranger's checkpoint runs gqkva's code, and nothing of the stranger's."""
    folder, mark = trapped
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "cache"))
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"messages": [{"role": "user", "content": "a fox"}]}\n' * 4)
    out = tmp_path / "out"
    for command in ("inspect", "convert", "evaluate"):
        result = gqkva(command, folder, *{"convert": [out], "evaluate": ["--data", chats]}.get(command, []))
        assert result.exit_code == 4
        assert "names code of its own" in result.stderr
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if name != "auto_map"})
    )
    commands: list[list[Any]] = [
        ["inspect", folder],
        ["convert", folder, out, "--gkv", "2"],
        ["verify", out],
        ["report", out],
        ["convert", folder, tmp_path / "calibrated", "--gkv", "2", "--calibration", chats],
        ["evaluate", folder, "--data", chats, "--no-save"],
        ["evaluate", out, "--data", chats, "--no-save"],
        ["uptrain", out, tmp_path / "trained", "--data", chats, "--tokens", "64", "--length", "8"],
        ["export", out, tmp_path / "gguf", "--runtime", "gguf"],
        ["push", out, "owner/name", "--dry-run"],
    ]
    codes = []
    for command in commands:
        result = gqkva(*command)
        codes.append(result.exit_code)
        assert result.exception is None or isinstance(result.exception, SystemExit), command
        assert not mark.exists(), command
    for made in (path for path in (out, tmp_path / "trained") if path.exists()):
        assert not [path.name for path in made.rglob("*") if path.suffix in (".py", ".pt", ".bin")]
        assert "auto_map" not in "".join(path.read_text() for path in made.glob("*config.json"))
    assert codes[:4] == [0, 0, 0, 0]
    assert set(codes[4:7]) == {11}  # the template reaches out of its sandbox


def test_the_traps_would_go_off(trapped: tuple[Path, Path]) -> None:
    """Otherwise the test above could not fail."""
    folder, mark = trapped
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert mark.exists()
