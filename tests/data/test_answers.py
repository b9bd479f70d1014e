"""The loss of an assistant's tokens alone: in training and measuring, by transformers' own loss."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chats
import pytest
from short_runs import losses, weights
from transformers import AutoTokenizer
from typer.testing import Result

from gqkva_convert.data.tasks import CAUSAL
from gqkva_convert.uptraining.rows.batches import IGNORED, causal_batch
from gqkva_convert.uptraining.rows.maker import RowMaker

Run = Callable[..., Result]
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TEMPLATES = {"marked": chats.MARKED, "by prefixes": chats.PLAIN}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: chats.make_chat_model(folder / name, template) for name, template in TEMPLATES.items()}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "cache"))


def masked(folder: Path, messages: list[dict[str, Any]]) -> tuple[list[int], list[bool]]:
    """Token ids of a chat, and by hand which are an assistant's: turn by turn, from its header to its end."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(messages)["input_ids"]
    counted = [False] * len(ids)
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            first = len(
                tokenizer.apply_chat_template(messages[:place], add_generation_prompt=True)["input_ids"]
            )
            last = len(tokenizer.apply_chat_template(messages[: place + 1])["input_ids"])
            counted[first:last] = [True] * (last - first)
    return ids, counted


@pytest.mark.parametrize("template", TEMPLATES)
def test_only_the_assistant_is_measured(
    template: str, models: dict[str, Path], tmp_path: Path, gqkva: Run
) -> None:
    """`evaluate` gives transformers' loss over labels that are -100 elsewhere."""
    model, made = models[template], chats.make_chats(6)
    file = chats.write_rows(tmp_path / "chats.jsonl", [{"messages": chat} for chat in made])
    result = gqkva("evaluate", model, "--data", file, "--assistant-only-loss", "--no-save", "--json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)
    loss, items = chats.mean_loss(model, [masked(model, chat) for chat in made])
    assert found["samples"] == items
    scores = {score["metric"]: score["value"] for score in found["metrics"]}
    assert scores["nats per token"] == pytest.approx(loss, rel=1e-5)
    assert found["settings"]["assistant_only_loss"] is True


@pytest.mark.parametrize("template", TEMPLATES)
def test_masks_are_those_of_transformers_where_it_marks_them(template: str, models: dict[str, Path]) -> None:
    """Packed, cut into rows and behind each other, every label is an assistant's token or -100."""
    model, made = models[template], chats.make_chats(12)
    tokenizer = AutoTokenizer.from_pretrained(model)
    if template == "marked":
        for chat in made:
            own = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
            assert list(map(bool, own["assistant_masks"])) == masked(model, chat)[1]
    maker = RowMaker(CAUSAL, tokenizer, 32, "data", packing=True, answers=True)
    maker.add([{"messages": chat} for chat in made])
    stream = [pair for chat in made for pair in zip(*masked(model, chat), strict=True)]
    at = 0
    for row in maker.ready:
        # Rows in which nothing counts are left out.
        while [token for token, _ in stream[at : at + 32]] != row["input_ids"]:
            at += 32
        labels = causal_batch([row], 0)["labels"][0].tolist()
        for place in range(31):
            token, counts = stream[at + place + 1]
            begins = place + 1 in row["starts"]
            assert labels[place] == (token if counts and not begins else IGNORED)
        assert any(label != IGNORED for label in labels)
        at += 32
    assert len(maker.ready) > 5


def test_training_counts_answers_only(models: dict[str, Path], tmp_path: Path, gqkva: Run) -> None:
    """The held-out loss before training is transformers' own, of chats, prompts and Alpaca rows alike."""
    model, made = models["by prefixes"], chats.make_chats(24, turns=1)
    held = made[:6]
    loss, _ = chats.mean_loss(model, [masked(model, chat) for chat in held])
    shapes: dict[str, Callable[[Any], dict[str, Any]]] = {
        "messages": lambda chat: {"messages": chat},
        "completion": lambda chat: {"prompt": chat[:1], "completion": chat[1:]},
        "instruction": lambda chat: {"instruction": chat[0]["content"], "output": chat[1]["content"]},
    }
    for name, shape in shapes.items():
        files = [
            chats.write_rows(tmp_path / f"{name}-{part}.jsonl", list(map(shape, rows)))
            for part, rows in (("train", made[6:]), ("held", held))
        ]
        data = (
            "--data",
            files[0],
            "--held-out",
            files[1],
            "--set",
            "assistant_only_loss=true",
            "--any-model",
        )
        sizes = ("--tokens", "400", "--batch-size", "4", "--length", "64", "--set", "packing=false")
        result = gqkva("uptrain", model, tmp_path / name, *data, *sizes, "--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["held_out_loss_before"] == pytest.approx(loss, rel=1e-5)
        assert found["held_out_loss"] < found["held_out_loss_before"]
        assert [reading["rows"] for reading in found["readings"]] == [18, 6]
        assert "note: " in result.stderr


def test_completions_of_plain_text_end_with_the_token_that_ends_texts(models: dict[str, Path]) -> None:
    """As in TRL's `completion_only_loss`."""
    tokenizer = AutoTokenizer.from_pretrained(models["marked"])
    maker = RowMaker(CAUSAL, tokenizer, 64, "data", packing=False, answers=True)
    maker.add([{"prompt": "the quick fox", "completion": " runs home"}])
    (row,) = maker.ready
    prompt, answer = (tokenizer(text)["input_ids"] for text in ("the quick fox", " runs home"))
    end = tokenizer.eos_token_id
    assert row["input_ids"] == [end, *prompt, *answer, end]
    assert row["answers"] == [False] * (1 + len(prompt)) + [True] * (len(answer) + 1)


def test_rows_resume_and_stream_with_their_masks(models: dict[str, Path]) -> None:
    """What waits for the next row keeps which of it counts."""
    tokenizer = AutoTokenizer.from_pretrained(models["marked"])
    records = [{"messages": chat} for chat in chats.make_chats(9)]

    def maker() -> RowMaker:
        return RowMaker(CAUSAL, tokenizer, 32, "data", packing=True, answers=True)

    whole, first, second = maker(), maker(), maker()
    whole.add(records)
    first.add(records[:4])
    second.restore(json.loads(json.dumps(first.state())))
    second.add(records[4:])
    assert second.ready == whole.ready


def test_distillation_sees_answers_only_stored_streamed_and_packed(
    models: dict[str, Path], tmp_path: Path, gqkva: Run
) -> None:
    """A teacher's stored answers fit the rows, whose masks travel with them."""
    model = models["marked"]
    rows = [{"messages": chat} for chat in chats.make_chats(60)]
    file = chats.write_rows(tmp_path / "chats.jsonl", rows)
    sizes = ("--tokens", "512", "--length", "32", "--set", "held_out_rows=4")
    common = ("--data", file, *sizes, "--set", "assistant_only_loss=true")
    stored = gqkva("teacher", model, tmp_path / "teacher", *common, "--top-k", "8")
    assert stored.exit_code == 0, stored.output
    run = ("--any-model", "--batch-size", "4")
    taught = ("--loss", "kl=1,task=1", "--teacher")
    streamed = ("--set", "streaming=true", "--set", "matching=0", *taught, model)
    for name, options in {"stored": (*taught, tmp_path / "teacher"), "streamed": streamed}.items():
        result = gqkva("uptrain", model, tmp_path / name, *common, *run, *options)
        assert result.exit_code == 0, result.output
        assert all(map(math.isfinite, losses(tmp_path / f"{name}-run")))
        assert set(weights(tmp_path / name)) == set(weights(model))


def test_what_has_no_answers_is_refused(models: dict[str, Path], tmp_path: Path, gqkva: Run) -> None:
    """Texts; chats whose template writes turns that cannot be told apart; chats in which nobody answers."""
    text = chats.write_rows(tmp_path / "text.jsonl", [{"text": "a fox"}] * 4)
    chat = chats.write_rows(tmp_path / "chat.jsonl", [{"messages": each} for each in chats.make_chats(4)])
    silent = [{"messages": [{"role": "user", "content": "a fox"}]}] * 4
    asked = chats.write_rows(tmp_path / "asked.jsonl", silent)
    fickle = chats.make_chat_model(tmp_path / "fickle", chats.FICKLE)
    model = models["marked"]
    for folder, data, words in (
        (model, text, "without an assistant's part"),
        (fickle, chat, "{% generation %}"),
        (model, asked, "no text that could be measured"),
    ):
        result = gqkva("evaluate", folder, "--data", data, "--assistant-only-loss", "--no-save")
        assert result.exit_code == 11, result.output
        assert words in result.stderr
    training = ("--tokens", "100", "--any-model", "--set", "assistant_only_loss=true")
    result = gqkva("uptrain", model, tmp_path / "out", "--data", asked, *training)
    assert result.exit_code == 11, result.output
    assert "no row of" in result.stderr
    assert "an assistant's tokens" in result.stderr


def test_spans_that_end_in_dropped_spaces_end_there(tmp_path: Path) -> None:
    """The mask of `apply_chat_template` would go on to the end of the chat there."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
        "{% endgeneration %}{% else %}{{ '<|user|>' + m['content'] }}{% endif %}{% endfor %}"
    )
    tokenizer = AutoTokenizer.from_pretrained(chats.make_chat_model(tmp_path / "model", template))
    maker = RowMaker(CAUSAL, tokenizer, 64, "data", packing=False, answers=True)
    asked = {"role": "user", "content": " a fox runs"}
    maker.add([{"messages": [asked, {"role": "assistant", "content": "x"}, asked]}])
    (row,) = maker.ready
    assert sum(row["answers"]) == 1
