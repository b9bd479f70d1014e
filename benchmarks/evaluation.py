"""Compare `gqkva evaluate` with lm-evaluation-harness on the same text: speed and results.

    python benchmarks/evaluation.py [--model DIR] [--files 40] [--batch-size 8] [--rounds 5]

Measured on held-out files of Python's standard library; both get the loaded model, in turn, in one process.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from pathlib import Path

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from gqkva_convert.data.processors import load_processor
from gqkva_convert.data.python_library import iter_texts
from gqkva_convert.demo_model.demo import MODEL
from gqkva_convert.evaluation.perplexity import load_causal_lm, score_windows
from gqkva_convert.evaluation.windows import Window, rolling_windows
from gqkva_convert.records.environment import machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for name in ("lm_eval", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    model, tokenizer = load_causal_lm(options.model), load_processor(options.model, "AutoTokenizer")
    texts = [text for _, text in iter_texts(held_out=True)][: options.files]
    harness = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=options.batch_size)
    length = harness.max_length
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    def theirs() -> tuple[float, int]:
        requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
        return -sum(harness.loglikelihood_rolling(requests, disable_tqdm=True)), 0

    def ours() -> tuple[float, int]:
        windows: list[Window] = []
        for number, text in enumerate(texts):
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
            windows += rolling_windows(tokens, prefix, length, length, number)
        scores = score_windows(model, None, windows, batch_tokens=options.batch_size * length)
        return float(scores.column("nats").sum()), scores.answers

    seconds: dict[str, list[float]] = {"lm-eval": [], "gqkva": []}
    nats: dict[str, float] = {}
    tokens = 0
    for turn in range(options.rounds + 1):
        for name, run in (("lm-eval", theirs), ("gqkva", ours)):
            start = time.perf_counter()
            nats[name], count = run()
            tokens = max(tokens, count)
            if turn > 0:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    print(machine())
    print(f"{tokens:,} tokens, windows of {length}, batches of {options.batch_size}")
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        spread = f"{min(taken):.2f} to {max(taken):.2f} s"
        print(f"{name}: {tokens / middle:,.0f} tokens/s ({spread}), {nats[name]:.3f} nats")
    ratio = statistics.median(seconds["lm-eval"]) / statistics.median(seconds["gqkva"])
    print(f"gqkva is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
