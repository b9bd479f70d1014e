"""A tiny sentence-transformers model on disk, made without that library."""

from __future__ import annotations

import json
from pathlib import Path

import tiny_models
import torch
import transformers
from safetensors.torch import save_file

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
]
FEATURES = 12
_PACKAGE = "sentence_transformers.models"


def tokenizer(folder: Path) -> None:
    """Give a folder a WordPiece tokenizer of `WORDS`."""
    words = [*WORDS, *"abcdefghijklmnopqrstuvw", ".", ","]
    vocabulary = {word: number for number, word in enumerate(words)}
    transformers.BertTokenizer(vocab=vocabulary, model_max_length=18).save_pretrained(folder)


def save(folder: Path, *, pickled: bool = False) -> Path:
    """Save a BERT, a mean of its tokens, a dense layer with weights, and a norm."""
    tiny_models.save(tiny_models.build("bert", "BertModel"), folder)
    tokenizer(folder)
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    modules = [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "", "type": f"{_PACKAGE}.{kind}"}
        for n, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 18, "do_lower_case": false}')
    pooling = {"word_embedding_dimension": 30, "pooling_mode_mean_tokens": True}
    dense = {
        "in_features": 30,
        "out_features": FEATURES,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    for name, config in (("1_Pooling", pooling), ("2_Dense", dense), ("3_Normalize", {})):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(3)
    weights = {
        "linear.weight": torch.randn(FEATURES, 30, generator=generator) / 5,
        "linear.bias": torch.randn(FEATURES, generator=generator) / 5,
    }
    if pickled:
        torch.save(weights, folder / "2_Dense" / "pytorch_model.bin")
    else:
        save_file(weights, folder / "2_Dense" / "model.safetensors")
    return folder
