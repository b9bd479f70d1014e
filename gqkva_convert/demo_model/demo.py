"""`gqkva demo`: the main job on the built-in model, offline."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.conversion.convert import convert
from gqkva_convert.conversion.inspect import inspect
from gqkva_convert.data.python_library import iter_texts
from gqkva_convert.errors import DemoError, UsageError
from gqkva_convert.evaluation.perplexity import language_loss, load_causal_lm
from gqkva_convert.progress import Progress, Stages, no_stages

MODEL = Path(__file__).parent / "checkpoint"
# Called with the name of the measured model and the number of tokens just read.
Watch = Callable[[str, int], None]


def demo(
    gkv: Sequence[int] = (4, 2, 1),
    *,
    merge: Sequence[str] = ("mean", "closed-form"),
    tokens: int = 32768,
    uptrain_tokens: int = 32768,
    progress: Watch | None = None,
    stages: Stages = no_stages,
) -> dict[str, Any]:
    """Convert the built-in language model at several numbers of key/value heads and measure each.

    The model is a small Llama trained on the source files of Python's standard library
    (``recipes/demo``); it is measured on files held out from its training.

    Args:
        gkv: Numbers of key/value heads to convert to.
        merge: How heads become one, each way in turn.
        tokens: About how many held-out tokens to measure on.
        uptrain_tokens: Tokens to train one of the conversions on, the one with about a quarter of the heads;
            0 for none.
        progress: Called with the name of the model being measured or trained and the tokens just read.
        stages: Begins a stage of progress.

    Returns:
        JSON data: a row a model with parameters, KV-cache bytes per token, held-out loss and perplexity.

    Raises:
        DemoError: The Python installation has no source files, or the package no model.
        GqkvaError: As `convert`.
    """
    if not (MODEL / "config.json").is_file():
        raise DemoError(f"the built-in model is missing from {MODEL}; install the package again")
    if tokens < 1:
        raise UsageError(f"--tokens {tokens}: measure on at least 1 token")
    sequences = held_out_windows(tokens)
    begin = _watched(stages, progress)
    rows = [_row(MODEL, "original", sequences, begin)]
    with TemporaryDirectory(prefix="gqkva-demo-") as folder:
        for heads in gkv:
            for rule in merge:
                out = convert(MODEL, Path(folder) / f"gkv-{heads}-{rule}", gkv=heads, merge=rule)
                rows.append(_row(out, f"--gkv {heads} --merge {rule}", sequences, begin))
        if uptrain_tokens > 0:
            chosen = min(gkv, key=lambda heads: abs(heads - 2))  # nearest to a quarter of the heads
            source = Path(folder) / f"gkv-{chosen}-{merge[-1]}"
            out = _uptrained(source, Path(folder), uptrain_tokens, begin)
            name = f"--gkv {chosen} --merge {merge[-1]}, uptrained"
            rows.append({**_row(out, name, sequences, begin), "uptrained_tokens": uptrain_tokens})
    return {
        "merge": list(merge),
        "held_out_tokens": rows[0]["tokens"],
        "training": read_json(MODEL / "training.json"),
        "rows": rows,
    }


def _watched(stages: Stages, watch: Watch | None) -> Stages:
    """Return stages that tell ``watch`` the name of each, too, whenever it advances."""

    def begin(name: str, total: int) -> Progress:
        advance = stages(f"measuring {name}", total)

        def count(tokens: int) -> None:
            advance(tokens)
            if watch is not None:
                watch(name, tokens)

        return count

    return begin


def _uptrained(source: Path, folder: Path, tokens: int, stages: Stages) -> Path:
    """Train a conversion's attention blocks to match the original's on text of other files."""
    from gqkva_convert.uptraining.settings import TrainingSettings
    from gqkva_convert.uptraining.uptrain import uptrain

    file, room = folder / "library.jsonl", 16 * tokens  # a token is about 3 characters
    with file.open("w", encoding="utf-8") as out:
        for _, text in iter_texts(held_out=False):
            out.write(json.dumps({"text": text[:20_000]}) + "\n")
            room -= min(len(text), 20_000)
            if room < 0:
                break
    settings = TrainingSettings(
        data=str(file),
        teacher=str(MODEL),
        tokens=tokens,
        matching=1.0,
        matching_learning_rate=4e-3,
        batch_size=4,
        held_out_rows=1,
        evaluation_steps=10**6,
    )
    advance, seen = stages("uptraining", tokens), 0

    def watch(entry: dict[str, Any]) -> None:
        nonlocal seen
        if "loss" in entry:
            advance(entry["tokens"] - seen)
            seen = entry["tokens"]

    uptrain(source, folder / "uptrained", settings, watch=watch)
    return folder / "uptrained"


def held_out_windows(tokens: int) -> list[list[int]]:
    """Return windows of the held-out files at the model's full length, spread evenly over all files."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    end_of_text: Any = tokenizer.token_to_id("<|endoftext|>")
    stream: list[int] = []
    for _, text in iter_texts(held_out=True):
        stream += [end_of_text, *tokenizer.encode(text).ids]
    length = read_json(MODEL / "config.json")["max_position_embeddings"]
    windows = [stream[start : start + length] for start in range(0, len(stream) - length + 1, length)]
    wanted = min(len(windows), max(1, tokens // length))
    return [windows[place * len(windows) // wanted] for place in range(wanted)]


def _row(folder: Path, name: str, sequences: list[list[int]], stages: Stages) -> dict[str, Any]:
    facts = inspect(folder)
    advance = stages(name, sum(map(len, sequences)))
    loss = language_loss(load_causal_lm(folder), sequences, progress=advance)
    return {
        "model": name,
        "variant": facts["attention"][0]["variant"],
        "parameters": facts["parameters"]["total"],
        "kv_cache_bytes_per_token": facts["kv_cache_bytes_per_token"],
        "tokens": loss.tokens,
        "nats_per_token": round(loss.nats_per_token, 4),
        "perplexity": round(loss.perplexity, 3),
    }
