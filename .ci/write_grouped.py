"""Write a grouped model of every family, with inputs and answers, for an environment without gqkva.

    python .ci/write_grouped.py FOLDER

Layers differ: GQKVA, unequal groups, MQA.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import tiny_models
import torch
from grouped_pairs import write_pair

from gqkva_convert.architectures import FAMILIES
from gqkva_convert.modeling.bundle import modeling_text
from gqkva_convert.modeling.loading import load_model, main_output


def main() -> None:
    folder = Path(sys.argv[1])
    for name, family in FAMILIES.items():
        source = tiny_models.save(tiny_models.build(name, family.architecture), folder / name / "source")
        grouped, _ = write_pair(source, "mixed", folder / name)
        model = load_model(grouped, family.architecture)
        (grouped / f"modeling_gqkva_{name}.py").write_text(modeling_text(model.family))
        inputs = tiny_models.inputs(model)
        if model.config.is_encoder_decoder:
            inputs["use_cache"] = False  # transformers 5.17 makes it as deep as the encoder
        with torch.inference_mode():
            answer = main_output(model(**inputs))
        torch.save({"inputs": inputs, "answer": answer}, folder / name / "expected.pt")


if __name__ == "__main__":
    main()
