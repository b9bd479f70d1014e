"""Load grouped models with torch and transformers alone, and compare their answers.

    python .ci/load_without_us.py FOLDER

FOLDER is what write_grouped.py has written.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import torch
import transformers


def main() -> None:
    assert importlib.util.find_spec("gqkva_convert") is None, "this environment has gqkva_convert"
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        config = json.loads((folder / "grouped" / "config.json").read_text())
        (saved,) = config["architectures"]
        name = next(auto for auto, path in config["auto_map"].items() if path.endswith(f".{saved}"))
        model = getattr(transformers, name).from_pretrained(folder / "grouped", trust_remote_code=True).eval()
        expected = torch.load(folder / "expected.pt", weights_only=True)
        with torch.inference_mode():
            output = model(**expected["inputs"])
        found = output["logits"] if "logits" in output else output["logits_per_text"]
        torch.testing.assert_close(found, expected["answer"], rtol=1e-4, atol=1e-5)
        print(f"{folder.name}: {type(model).__name__} of {type(model).__module__.partition('.')[0]}")


if __name__ == "__main__":
    main()
