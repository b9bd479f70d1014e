"""Answers of vLLM, for tests; run by a Python that has vLLM but not gqkva.

``python vllm_answers.py MODEL ANSWERS.json``: the tokens of `PROMPTS` continued greedily, and their
log-probabilities.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PROMPTS = [[1, 7, 300, 12, 2048, 99], list(range(40, 90)), [3000, 5]]
NEW_TOKENS = 16


def main() -> None:
    from vllm import LLM, SamplingParams

    model, answers = sys.argv[1:]
    settings = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=0, ignore_eos=True)
    engine = LLM(model=model, dtype="float32", enforce_eager=True, max_model_len=128)
    found = []
    for request in engine.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], settings):
        (output,) = request.outputs
        chosen = list(output.token_ids)
        likely = [step[token].logprob for step, token in zip(output.logprobs, chosen, strict=True)]
        found.append({"tokens": chosen, "logprobs": likely})
    Path(answers).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
