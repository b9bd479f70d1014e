"""Records as texts that a model reads: plain ones as they are, chats through the model's chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gqkva_convert.data.chat import (
    ASSISTANT,
    SYSTEM,
    USER,
    ChatTemplate,
    Message,
    Spans,
    read_messages,
    without_none,
)
from gqkva_convert.data.shapes import (
    CHAT,
    COMPLETION,
    INSTRUCTION,
    PREFERENCE,
    Match,
    Record,
    Shape,
    find_shape,
    renamed_columns,
)
from gqkva_convert.errors import DataError

# Characters of the sample that is shown.
_SAMPLE_CHARACTERS = 160
TEMPLATE, ALPACA, AS_IS = "the model's chat template", "Alpaca's prompt", "none"


@dataclass(frozen=True)
class Document:
    """A text that a model reads.

    Attributes:
        text: The text.
        is_rendered: Whether a chat template wrote it, with all special tokens: none are added.
        answers: Parts whose tokens count in the loss, by characters; None for all.
    """

    text: str
    is_rendered: bool = False
    answers: Spans | None = None


@dataclass
class Reading:
    """The rows, columns and template that are read of a data set, for a person to check.

    Attributes:
        data: Its name.
        shape: Name of the records' shape.
        columns: Columns that are read.
        unread: Columns of text that are not.
        template: What writes chats, prompts and answers.
        rows: Records that were read.
        empty: Those of them without text in these columns.
        sample: The first text, shortened.
    """

    data: str
    shape: str
    columns: list[str]
    unread: list[str] = field(default_factory=list)
    template: str = AS_IS
    rows: int = 0
    empty: int = 0
    sample: str = ""

    def count(self, record: Record, sample: str | None) -> None:
        """Count a record, with its first text or None, and note its columns of text that are not read."""
        self.rows += 1
        self.empty += sample is None
        self.sample = self.sample or (sample or "")
        for name, value in record.items():
            if name not in self.columns and name not in self.unread and _is_language(value):
                self.unread.append(name)

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def describe(self) -> str:
        """Return one line."""
        template = "" if self.template == AS_IS else f", through {self.template}"
        empty = f", {self.empty:,} of them empty" if self.empty else ""
        unread = f"; not read: {', '.join(self.unread)} (--column chooses others)" if self.unread else ""
        return (
            f"{self.data}: {self.rows:,} rows read{empty}: {', '.join(self.columns)} ({self.shape})"
            f"{template}{unread}; the first: {self.sample}"
        )


def shortened(text: str) -> str:
    """Return the beginning of a text, on one line."""
    shown = json.dumps(text, ensure_ascii=False)
    return shown if len(shown) <= _SAMPLE_CHARACTERS else f'{shown[: _SAMPLE_CHARACTERS - 4]}..."'


def _is_language(value: Any) -> bool:
    """Return whether a value is text, or a list of messages."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict)
    return isinstance(value, str) and bool(value.strip())


class DocumentReader:
    """Makes documents of the records of a data set, whose shape the first of them with a text decides.

    Args:
        data: Name of the data.
        tokenizer: The model's own, for its chat template.
        columns: Columns to read, as `renamed_columns` takes them; none to look for those of known shapes.
        answers: Tell the parts that answer apart from the others: an assistant's turns, completions.

    Attributes:
        reading: What is read, once the first record was.
    """

    def __init__(
        self, data: str, tokenizer: Any, columns: Sequence[str] = (), *, answers: bool = False
    ) -> None:
        self.data = data
        self.columns = renamed_columns(columns)[1]
        self.template = ChatTemplate(tokenizer, data)
        self.answers = answers
        self.reading: Reading | None = None
        # Records without a text before the first that has one.
        self._before = 0
        self._match: Match | None = None

    def read(self, records: Iterable[Record], *, keep_blank: bool = False) -> Iterator[Document]:
        """Yield the documents of records.

        Args:
            records: Records with the same columns.
            keep_blank: Yield texts without a word, too: they are the empty lines of running text.

        Raises:
            DataError: The records have no shape that is read, or several, or no answers where these are
                wanted.
        """
        for record in records:
            made = [each for each in self._documents(record) if each.text.strip() or keep_blank]
            filled = next((shortened(each.text) for each in made if each.text.strip()), None)
            if self.reading is None:
                self._before += 1
            else:
                self.reading.count(record, filled)
            yield from made

    def _documents(self, record: Record) -> list[Document]:
        if self._match is None:
            self._match = find_shape(record, self.columns, answers=self.answers, data=self.data)
            if self._match is None:
                return []
            self._begin(self._match, record)
        match = self._match
        if match.shape.kind not in (CHAT, INSTRUCTION, COMPLETION, PREFERENCE):
            values = [record.get(name) for name in match.names.values()]
            self._require_text(match, record)
            texts = [Document(value) for value in values if isinstance(value, str)]
            return texts or self._none(record)
        if not match.is_filled(record):
            return self._none(record)
        document = self._document(match.shape, match.values(record))
        return [] if document is None else [document]

    def _none(self, record: Record) -> list[Document]:
        """Return no document; refuse a record that has its text in the columns of another shape."""
        assert self._match is not None
        other = None if self.columns else find_shape(record, answers=self.answers)
        if other is not None and other.shape != self._match.shape and other.shape.columns:
            raise DataError(
                f"{self.data} mixes {self._match.shape.kind} ({', '.join(self._match.shape.columns)}) and "
                f"{other.shape.kind} ({', '.join(other.shape.columns)}); split it, or choose with --column"
            )
        return []

    def _require_text(self, match: Match, record: Record) -> None:
        for name in match.names.values():
            value = record.get(name)
            if value is not None and not isinstance(value, str):
                raise DataError(
                    f"{self.data}: {name} holds {str(value)[:60]!r}, which is no text; choose another column "
                    "with --column"
                )

    def _begin(self, match: Match, record: Record) -> None:
        if self.answers and not match.shape.has_answers:
            raise DataError(
                f"{self.data} holds texts ({', '.join(match.names.values())}) without an assistant's part; "
                "leave assistant_only_loss out, or give chats or prompts with completions"
            )
        used = [name for name in match.names.values() if name in record]
        self.reading = Reading(self.data, match.shape.kind, used)
        self.reading.rows = self.reading.empty = self._before

    def _document(self, shape: Shape, values: Record) -> Document | None:
        """Make the document of a record that has all columns of its shape; None where it holds no text."""
        if shape.kind == CHAT:
            messages = read_messages(values[shape.columns[0]], f"{self.data}: {shape.columns[0]}")
            return self._chat(messages, values, 0)
        if shape.kind == INSTRUCTION:
            return self._instruction(shape, values)
        if shape.kind == COMPLETION and values.get("label") is False:
            return None
        prompt, answer = values.get("prompt"), values["chosen" if shape.kind == PREFERENCE else "completion"]
        if isinstance(answer, str) and (prompt is None or isinstance(prompt, str)):
            return self._joined(prompt or "", answer)
        before = _turns(prompt, USER, f"{self.data}: prompt")
        after = _turns(
            answer, ASSISTANT, f"{self.data}: {'chosen' if shape.kind == PREFERENCE else 'completion'}"
        )
        if not after:
            return None
        # Some preference data repeat the prompt in their answers, or have it nowhere else.
        if after[: len(before)] == before:
            before, after = after[:-1], after[-1:]
        return self._chat([*before, *after], values, len(before))

    def _joined(self, prompt: str, answer: str) -> Document | None:
        if not answer.strip():
            return None
        text = prompt + answer
        return Document(text, answers=((len(prompt), len(text)),) if self.answers else None)

    def _instruction(self, shape: Shape, values: Record) -> Document | None:
        asked, answer = (_text(values[name], name, self.data) for name in shape.columns)
        given = next(
            (values[name] for name in ("input", "context") if name in values and name not in shape.columns),
            "",
        )
        given = _text(given, "input", self.data)
        if not asked.strip() or not answer.strip():
            return None
        if self.template.exists:
            question = f"{asked}\n{given}" if given.strip() else asked
            turns = [*_history(values.get("history"), self.data), (USER, question), (ASSISTANT, answer)]
            messages = [{"role": role, "content": content} for role, content in turns]
            return self._chat(messages, values, len(messages) - 1)
        if values.get("system") or values.get("history"):
            raise DataError(
                f"{self.data} holds rows with system or history, and the model's tokenizer has no chat "
                "template; put the chat_template.jinja of its chat model into the folder"
            )
        self._written_by(ALPACA)
        return self._joined(alpaca_prompt(asked, given), answer)

    def _chat(self, messages: list[Message], values: Record, first: int) -> Document | None:
        """Render a chat, of which messages from the first one on answer."""
        if not messages:
            return None
        if values.get("system") and messages[0]["role"] != SYSTEM:
            messages, first = (
                [{"role": SYSTEM, "content": _text(values["system"], "system", self.data)}, *messages],
                first + 1,
            )
        extras = _extras(values, self.data)
        text = self.template.render(messages, extras)
        self._written_by(TEMPLATE)
        answers = self.template.answers(messages, extras, text, first) if self.answers else None
        return Document(text, is_rendered=True, answers=answers)

    def _written_by(self, template: str) -> None:
        if self.reading is not None:
            self.reading.template = template


def alpaca_prompt(instruction: str, given: str = "") -> str:
    """Return what stands before the answer in Stanford Alpaca's training texts (Taori et al., 2023)."""
    if not given.strip():
        return (
            "Below is an instruction that describes a task. Write a response that appropriately completes "
            f"the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
        )
    return (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n### Input:\n{given}\n\n### Response:\n"
    )


def _text(value: Any, name: str, data: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{data}: {name} holds {str(value)[:60]!r}, which is no text")
    return value


def _turns(value: Any, role: str, where: str) -> list[Message]:
    """Return messages, or a text as the message of a role."""
    if value is None:
        return []
    return [{"role": role, "content": value}] if isinstance(value, str) else read_messages(value, where)


def _history(value: Any, data: str) -> list[tuple[str, str]]:
    """Return earlier turns: pairs of what was asked and answered."""
    turns = []
    for pair in value if isinstance(value, list) else [value] if value else ():
        if not (
            isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(each, str) for each in pair)
        ):
            raise DataError(
                f"{data}: history holds {str(pair)[:60]!r}; give pairs of a question and its answer"
            )
        turns += [(USER, pair[0]), (ASSISTANT, pair[1])]
    return turns


def _extras(values: Record, data: str) -> dict[str, Any]:
    """Return other arguments of the chat template: tools, and those that a record gives by name."""
    import inspect

    from transformers import PreTrainedTokenizerBase

    tools: Any = values.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise DataError(f"{data}: tools holds {shortened(str(tools))}, which is no JSON") from error
    # Data may set variables of the template, but not what is done with it.
    ours = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    given = values.get("chat_template_kwargs")
    for name, value, kind in (("tools", tools, list), ("chat_template_kwargs", given, dict)):
        if value and not isinstance(value, kind):
            wanted = "a list" if kind is list else "an object"
            raise DataError(f"{data}: {name} holds {shortened(str(value))}; give {wanted}")
    extras = {name: value for name, value in (given or {}).items() if value is not None and name not in ours}
    return {**extras, **({"tools": without_none(tools)} if tools else {})}
