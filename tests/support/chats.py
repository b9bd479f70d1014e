"""Tiny models with chat templates, chats for them, and what transformers makes of both."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from learners import WORDS, make_decoder
from transformers import AutoModelForCausalLM, AutoTokenizer

# Each chat begins with the token that parts texts, as some templates have it.
_TURN = "{{ '<|im_start|>' + m['role'] + '\n' }}"
_SAID = (
    "{% if m['content'] is defined %}{{ m['content'] }}{% endif %}"
    "{% if m['tool_calls'] is defined %}{{ m['tool_calls'] | tojson }}{% endif %}{{ '<|im_end|>\n' }}"
)
_AROUND = (
    "{{ eos_token }}{%% if tools %%}{{ tools | tojson }}{%% endif %%}"
    "{%% for m in messages %%}%s{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\n' }}{%% endif %%}"
)
PLAIN = _AROUND % f"{_TURN}{_SAID}"
MARKED = _AROUND % (
    f"{_TURN}{{% if m['role'] == 'assistant' %}}{{% generation %}}{_SAID}{{% endgeneration %}}"
    f"{{% else %}}{_SAID}{{% endif %}}"
)
# The last turn is written otherwise than earlier ones, as reasoning models' templates do.
FICKLE = _AROUND % f"{_TURN}{{% if loop.last %}}<think></think>{{% endif %}}{_SAID}"


def make_chat_model(folder: Path, template: str | None = PLAIN) -> Path:
    """Make a tiny Llama; with a chat template unless it is None."""
    make_decoder(folder, max_position_embeddings=256)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def says(draw: random.Random, words: int = 6) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(2, words)))


def make_chats(count: int, turns: int = 2, seed: int = 0) -> list[list[dict[str, Any]]]:
    draw = random.Random(seed)
    return [
        [{"role": role, "content": says(draw)} for _ in range(turns) for role in ("user", "assistant")]
        for _ in range(count)
    ]


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def rendered(folder: Path, messages: list[dict[str, Any]], **options: Any) -> str:
    return str(AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False, **options))


def mean_loss(folder: Path, chats: Sequence[tuple[list[int], list[bool]]]) -> tuple[float, int]:
    """Compute transformers' own loss of a model over tokens that count, and their number.

    Args:
        folder: The model.
        chats: Token ids, and which of them count.
    """
    model = AutoModelForCausalLM.from_pretrained(folder)
    total, items = 0.0, 0
    for ids, counted in chats:
        labels = torch.tensor(
            [[token if counts else -100 for token, counts in zip(ids, counted, strict=True)]]
        )
        number = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += number * float(model(input_ids=torch.tensor([ids]), labels=labels).loss)
        items += number
    return total / items, items
