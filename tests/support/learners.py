"""Small models with tokenizers and data, for tests that train."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import gqkva_convert
from gqkva_convert.demo_model.demo import MODEL

WORDS = (
    *("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "red", "birds"),
    *("sing", "in", "old", "trees", "by", "our", "river"),
)


@dataclass(frozen=True)
class Lesson:
    """A source, its conversion, and data to learn from."""

    teacher: Path
    student: Path
    data: Path


def write_texts(file: Path, count: int = 120, seed: int = 0) -> Path:
    """Write texts of 3 to 60 words, one JSON line each."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 60))) for _ in range(count)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def make_decoder(folder: Path, model_type: str = "llama", **config: Any) -> Path:
    """Make a decoder with 4 heads, the built-in model's tokenizer, and weights far from uniform attention."""
    sizes = {
        "vocab_size": 4096,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "attention_dropout": 0.0,
    }
    if hasattr(transformers.AutoConfig.for_model(model_type), "num_key_value_heads"):
        sizes["num_key_value_heads"] = 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(model_type, **{**sizes, **config})
        )
        for name, parameter in model.named_parameters():
            if "_proj" in name or "attn" in name:
                parameter.data.mul_(4.0)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, folder / name)
    return folder


def renumber_words(folder: Path) -> Path:
    """Give every token of a folder's tokenizer another id."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    words = data["model"]["vocab"]
    data["model"]["vocab"] = dict(zip(words, reversed(words.values()), strict=True))
    data["added_tokens"] = []
    path.unlink()
    path.write_text(json.dumps(data))
    return folder


def make_conversion(source: Path, out: Path, **options: Any) -> Path:
    """Convert the source to half its key/value heads by the mean, so that there is a loss to recover."""
    gqkva_convert.convert(source, out, **{"gkv": 2, "merge": "mean", **options})
    return out
