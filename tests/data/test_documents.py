"""Rows as people have them, through the command line: what is read, and what transformers makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chats
import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer
from typer.testing import Result

from gqkva_convert.data.documents import DocumentReader, alpaca_prompt
from gqkva_convert.data.shapes import SHAPES

Run = Callable[..., Result]
# Readers of datasets leave files open that are not read to their end.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ROW = {"instruction": "name a fox", "input": "red birds", "output": "quick brown"}
TURNS = [
    {"role": "user", "content": "name a fox\nred birds"},
    {"role": "assistant", "content": "quick brown"},
]
ASKED = [{"role": "user", "content": "old trees"}, {"role": "assistant", "content": "our river"}]
CALL = {"name": "look", "arguments": {"place": "river"}}
TOOLS = [
    {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chats.make_chat_model(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chats.make_chat_model(tmp_path_factory.mktemp("bare") / "model", None)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "cache"))


def documents(folder: Path, rows: list[dict[str, Any]], **options: Any) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [document.text for document in DocumentReader("data", tokenizer, **options).read(rows)]


def as_chat(model: Path, messages: list[dict[str, Any]], **options: Any) -> str:
    return chats.rendered(model, messages, **options)


ROWS = {
    "alpaca": (ROW, TURNS, {}),
    "no input": ({**ROW, "input": ""}, [{**TURNS[0], "content": "name a fox"}, TURNS[1]], {}),
    "dolly": ({"instruction": "name a fox", "context": "red birds", "response": "quick brown"}, TURNS, {}),
    "system and history": (
        {**ROW, "system": "be brief", "history": [["old trees", "our river"]]},
        [{"role": "system", "content": "be brief"}, *ASKED, *TURNS],
        {},
    ),
    "question": ({"question": "old trees", "answer": "our river"}, ASKED, {}),
    "capitals": ({"Instruction": "old trees", "OUTPUT": "our river"}, ASKED, {}),
    "messages": ({"messages": ASKED}, ASKED, {}),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": "old trees"}, {"from": "gpt", "value": "our river"}],
            "system": "be brief",
        },
        [{"role": "system", "content": "be brief"}, *ASKED],
        {},
    ),
    "tools": (
        {
            "messages": [
                ASKED[0],
                {"role": "assistant", "content": None, "tool_calls": [{"function": CALL}]},
            ],
            "tools": TOOLS,
        },
        [ASKED[0], {"role": "assistant", "tool_calls": [{"function": CALL}]}],
        {"tools": TOOLS},
    ),
    "sharegpt tools": (
        {
            "conversations": [
                {"from": "human", "value": "old trees"},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "birds"},
            ],
            "tools": json.dumps(TOOLS),
        },
        [
            ASKED[0],
            {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL}]},
            {"role": "tool", "content": "birds"},
        ],
        {"tools": TOOLS},
    ),
    "turns of prompt and completion": ({"prompt": ASKED[:1], "completion": ASKED[1:]}, ASKED, {}),
    "preference": ({"prompt": ASKED[:1], "chosen": ASKED[1:], "rejected": [TURNS[1]]}, ASKED, {}),
    "implicit prompt": ({"chosen": ASKED, "rejected": TURNS}, ASKED, {}),
    "repeated prompt": ({"prompt": "old trees", "chosen": ASKED, "rejected": TURNS}, ASKED, {}),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "old trees"}]}, ASKED[1]]},
        ASKED,
        {},
    ),
    "columns of messages": (
        {"messages": {"role": ["user", "assistant"], "content": ["old trees", "our river"]}},
        ASKED,
        {},
    ),
    "unicode": (
        {"messages": [{"role": "user", "content": "où? 狐 🦊"}]},
        [{"role": "user", "content": "où? 狐 🦊"}],
        {},
    ),
    "an empty answer": (
        {"messages": [ASKED[0], {"role": "assistant", "content": ""}]},
        [ASKED[0], {"role": "assistant", "content": ""}],
        {},
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_what_its_chat_is_in_transformers(name: str, model: Path) -> None:
    """The text is the template's, so its tokens are those of `apply_chat_template`."""
    row, messages, options = ROWS[name]
    assert documents(model, [row]) == [as_chat(model, messages, **options)]


PLAIN = {
    "alpaca": (ROW, alpaca_prompt("name a fox", "red birds") + "quick brown"),
    "completion": ({"prompt": "the sky is", "completion": " blue"}, "the sky is blue"),
    "preference": ({"prompt": "a fox", "chosen": " runs", "rejected": " flies"}, "a fox runs"),
    "unpaired": ({"prompt": "a fox", "completion": " runs", "label": True}, "a fox runs"),
    "text first": ({"text": "a fox", **ROW}, "a fox"),
    "content": ({"content": "a fox"}, "a fox"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_needs_no_template_is_read_without_one(name: str, bare: Path) -> None:
    row, text = PLAIN[name]
    assert documents(bare, [row]) == [text]


def test_rows_without_text_are_skipped_and_counted(model: Path) -> None:
    """Empty, None, or disliked (``label`` false)."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    reader = DocumentReader("data", tokenizer)
    rows = [{"messages": None}, {"messages": ASKED}, {"messages": []}, {"messages": None}]
    assert len(list(reader.read(rows))) == 1
    assert reader.reading is not None
    assert (reader.reading.rows, reader.reading.empty) == (4, 3)
    assert documents(model, [{"prompt": "a", "completion": "b", "label": False}]) == []
    assert documents(model, [{**ROW, "output": None}, {**ROW, "output": "  "}]) == []


def test_alpaca_rows_are_one_document_each(model: Path, tmp_path: Path, gqkva: Run) -> None:
    """They were two each, without the instruction."""
    file = chats.write_rows(tmp_path / "alpaca.jsonl", [{**ROW, "topic": "birds"} for _ in range(30)])
    result = gqkva("evaluate", model, "--data", file, "--no-save", "--json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)
    ids = AutoTokenizer.from_pretrained(model).apply_chat_template(TURNS)["input_ids"]
    assert found["settings"]["documents"] == 30
    assert found["samples"] == 30 * (len(ids) - 1)
    reading = found["reading"]
    assert reading["columns"] == ["instruction", "output", "input"]
    assert (reading["unread"], reading["template"]) == (["topic"], "the model's chat template")
    assert "name a fox" in reading["sample"]
    (line,) = result.stderr.strip().splitlines()
    for words in ("30 rows read", "instruction, output, input", "not read: topic", "name a fox"):
        assert words in line


@pytest.mark.parametrize("shape", ["messages", "conversations", "alpaca", "completion"])
def test_conversions_see_what_the_chat_template_writes(
    shape: str, model: Path, tmp_path: Path, gqkva: Run
) -> None:
    """Calibrated on chats, weights are those of a calibration on the texts that transformers makes."""
    made = chats.make_chats(40, turns=1)
    rows: dict[str, Callable[[Any], dict[str, Any]]] = {
        "messages": lambda chat: {"messages": chat},
        "conversations": lambda chat: {
            "conversations": [{"from": message["role"], "value": message["content"]} for message in chat]
        },
        "alpaca": lambda chat: {"instruction": chat[0]["content"], "input": "", "output": chat[1]["content"]},
        "completion": lambda chat: {"prompt": chat[:1], "completion": chat[1:]},
    }
    end = AutoTokenizer.from_pretrained(model).eos_token
    texts = [{"text": as_chat(model, chat).removeprefix(end)} for chat in made]
    files = {
        "chats": chats.write_rows(tmp_path / "chats.jsonl", list(map(rows[shape], made))),
        "texts": chats.write_rows(tmp_path / "texts.jsonl", texts),
    }
    options = ("--gkv", "2", "--refine", "none", "--calibration-samples", "8", "--calibration-length", "32")
    for name, file in files.items():
        result = gqkva("convert", model, tmp_path / name, *options, "--calibration", file)
        assert result.exit_code == 0, result.output
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in files)
    assert all(found[name].equal(wanted[name]) for name in wanted)
    reading = json.loads((tmp_path / "chats" / "gqkva_report.json").read_text())["calibration"]["reading"]
    assert reading["rows"] == 40
    assert reading["template"] == "the model's chat template"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"body": "x", "number": 1}, ["columns body, number", "--column body", "docs/data.md"]),
        ({"prompt": "x"}, ["columns prompt", "--column prompt"]),
        ({"messages": [{"content": "x"}]}, ["message 0 has no role", "role and content"]),
        ({"messages": [{"role": "wizard", "content": "x"}]}, ["has the role 'wizard'", "assistant"]),
        ({"messages": [{"role": "user", "content": None}]}, ["message 0 has no content"]),
        ({"messages": [[{"role": "user", "content": "x"}]]}, ["message 0 is [{"]),
        ({"messages": "hello"}, ["'hello', which is no list of messages", "--column"]),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, ["a part that is no text"]),
        ({"text": ["a", "b"]}, ["text holds", "which is no text"]),
        ({**ROW, "system": ["be brief"]}, ["system holds", "which is no text"]),
        ({**ROW, "history": 5}, ["history holds '5'", "pairs of a question and its answer"]),
        ({"messages": ASKED, "tools": {"name": "look"}}, ["tools holds", "give a list"]),
        ({"messages": ASKED, "tools": "{look"}, ["tools holds", "which is no JSON"]),
        ({"messages": ASKED, "chat_template_kwargs": ["x"]}, ["chat_template_kwargs holds", "an object"]),
        ({"instruction": ["a"], "output": "b"}, ["instruction holds", "no text"]),
        (
            {"conversations": [{"from": "function_call", "value": "look"}]},
            ["is no call with name and arguments"],
        ),
    ],
)
def test_rows_that_are_not_understood_are_refused(
    row: dict[str, Any], words: list[str], model: Path, tmp_path: Path, gqkva: Run
) -> None:
    """One line, never a guess."""
    file = chats.write_rows(tmp_path / "rows.jsonl", [row] * 3)
    result = gqkva("evaluate", model, "--data", file, "--no-save")
    refused(result, "rows.jsonl", *words)


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 11, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_mixed_shapes_are_refused(model: Path, tmp_path: Path, gqkva: Run) -> None:
    file = chats.write_rows(tmp_path / "rows.jsonl", [{"text": "a fox"}, {"messages": ASKED}])
    refused(gqkva("evaluate", model, "--data", file, "--no-save"), "mixes", "text", "messages", "--column")


def test_chats_need_a_template(bare: Path, model: Path, tmp_path: Path, gqkva: Run) -> None:
    """The template's own refusal is passed on."""
    file = chats.write_rows(tmp_path / "rows.jsonl", [{"messages": ASKED}] * 3)
    refused(gqkva("evaluate", bare, "--data", file, "--no-save"), "no chat template", "chat_template.jinja")
    strict = chats.make_chat_model(tmp_path / "strict", "{{ raise_exception('turns must alternate') }}")
    refused(gqkva("evaluate", strict, "--data", file, "--no-save"), "refuses", "turns must alternate")


def test_columns_are_read_by_name(model: Path, tmp_path: Path, gqkva: Run) -> None:
    """A text, messages, or what columns stand for; a name that is not there is refused with one that is."""
    rows = [
        {"body": "a red fox", "chat": ASKED, "Frage": "old trees", "Antwort": "our river", "text": "no"}
    ] * 5
    file = chats.write_rows(tmp_path / "rows.jsonl", rows)

    def sample(*columns: str) -> dict[str, Any]:
        options = [word for name in columns for word in ("--column", name)]
        result = gqkva("evaluate", model, "--data", file, "--no-save", "--json", *options)
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)[0]["reading"]
        return found

    assert sample("body")["sample"] == '"a red fox"'
    assert json.loads(sample("chat")["sample"]) == as_chat(model, ASKED)
    named = sample("text=body")
    assert (named["columns"], named["sample"]) == (["text"], '"a red fox"')
    refused(
        gqkva("evaluate", model, "--data", file, "--column", "bodi"), "no column 'bodi'", "did you mean body?"
    )
    refused(
        gqkva("evaluate", model, "--data", file, "--column", "fox=body"), "fox is no column of a known shape"
    )
    refused(gqkva("evaluate", model, "--data", file, "--column", "text="), "give NAME, or KNOWN=NAME")


def test_the_first_shape_that_fits_is_read() -> None:
    """No shape hides another: its columns are not all among those of a later one that asks for more."""
    for number, shape in enumerate(SHAPES):
        for later in SHAPES[number + 1 :]:
            hides = set(shape.columns) <= set(later.columns) and shape.has_answers
            assert not hides, f"{shape.columns} hides {later.columns}"
