"""Chats as a model's own chat template writes them, and where in the text its assistant speaks."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from gqkva_convert.errors import DataError, first_line

Message = dict[str, Any]
# First and last character but one of parts of a text.
Spans = tuple[tuple[int, int], ...]

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
_CALL = "function_call"
# Names of roles in chats of the Hub; ShareGPT's, LLaMA-Factory's and those of chat templates.
ROLES = {
    **{role: role for role in (SYSTEM, USER, ASSISTANT, TOOL, "developer")},
    **dict.fromkeys(("human", "prompter"), USER),
    **dict.fromkeys(("gpt", "chatgpt", "model", "bot"), ASSISTANT),
    **dict.fromkeys(("observation", "function_response", "function"), TOOL),
    _CALL: ASSISTANT,
}
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


def read_messages(value: Any, where: str) -> list[Message]:
    """Read a chat: messages of a role and content, or of ``from`` and ``value`` as ShareGPT has them.

    Args:
        value: What a record holds; of a dictionary of lists the messages are its rows.
        where: What to call it in an error.

    Raises:
        DataError: It is no chat, or a message lacks a role or has one that is not known.
    """
    if isinstance(value, dict):
        lengths = {len(items) for items in value.values() if isinstance(items, list)}
        if len(lengths) == 1 and all(isinstance(items, list) for items in value.values()):
            value = [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise DataError(
            f"{where} holds {_short(value)}, which is no list of messages (--column reads a column as text)"
        )
    return [_read_message(message, f"{where}, message {number}") for number, message in enumerate(value)]


def _read_message(given: Any, where: str) -> Message:
    if not isinstance(given, dict):
        raise DataError(f"{where} is {_short(given)}; give role and content, or from and value")
    message: Message = {name: without_none(value) for name, value in given.items() if value is not None}
    for old, new in (("from", "role"), ("value", "content")):
        if old in message and new not in message:
            message[new] = message.pop(old)
    role = message.get("role")
    if not isinstance(role, str) or not role.strip():
        raise DataError(f"{where} has no role: {_short(message)}; give role and content, or from and value")
    known = ROLES.get(role.strip().casefold())
    if known is None:
        raise DataError(f"{where} has the role {role!r}; known are {', '.join(ROLES)}")
    message["role"] = known
    if role.strip().casefold() == _CALL:
        return _called(message, where)
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = _joined_parts(content, where)
    elif content is not None and not isinstance(content, str):
        raise DataError(f"{where} has the content {_short(content)}, which is no text")
    elif content is None and not message.get("tool_calls"):
        raise DataError(f"{where} has no content: {_short(message)}")
    return message


def _called(message: Message, where: str) -> Message:
    """Make a call of a tool of a message whose text is the call as JSON, as ShareGPT has it."""
    try:
        call = json.loads(message["content"])
        function = {"name": call["name"], "arguments": call["arguments"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where} is no call with name and arguments: {_short(message)}") from error
    return {"role": ASSISTANT, "tool_calls": [{"type": "function", "function": function}]}


def _joined_parts(parts: Sequence[Any], where: str) -> str:
    for part in parts:
        if not (
            isinstance(part, dict)
            and isinstance(part.get("text"), str)
            and part.get("type", "text") == "text"
        ):
            raise DataError(f"{where} has a part that is no text: {_short(part)}; give text alone")
    return "".join(part["text"] for part in parts)


def without_none(value: Any) -> Any:
    """Drop what is None in objects: tables give every object the keys of all."""
    if isinstance(value, dict):
        return {name: without_none(each) for name, each in value.items() if each is not None}
    return [without_none(each) for each in value] if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: The model's own.
        data: Name of the data, for errors.
    """

    def __init__(self, tokenizer: Any, data: str) -> None:
        self.tokenizer = tokenizer
        self.data = data

    @property
    def exists(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    def render(self, messages: Sequence[Message], extras: dict[str, Any]) -> str:
        """Return a chat as text, with the special tokens that the template writes.

        Args:
            messages: The chat.
            extras: Other arguments of the template, ``tools`` among them.

        Raises:
            DataError: There is no template, or it refuses the chat.
        """
        if not self.exists:
            raise DataError(
                f"{self.data} holds chats, and the model's tokenizer has no chat template; put the "
                "chat_template.jinja of its chat model into the folder, or give data with a column of text"
            )
        return self._render(messages, extras)

    def _render(self, messages: Sequence[Message], extras: dict[str, Any], **options: Any) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, **{"add_generation_prompt": False, **extras, **options}
            )
        except Exception as error:  # templates raise what they like
            raise DataError(
                f"{self.data}: the chat template refuses {_short(list(messages))}: {first_line(error)}"
            ) from error
        return str(text)

    def answers(self, messages: Sequence[Message], extras: dict[str, Any], text: str, first: int) -> Spans:
        """Find the parts of a rendered chat that the assistant writes, with the tokens that end its turns.

        Templates that mark them (``{% generation %}``) say so themselves. Of others each turn is what the
        chat up to it adds to the chat before it and the beginning of an answer.

        Args:
            messages: The chat.
            extras: Other arguments of the template.
            text: The chat as `render` gave it.
            first: Messages before this one are not looked at.

        Raises:
            DataError: The template writes a turn otherwise when others follow it.
        """
        own = [place for place in range(first, len(messages)) if messages[place]["role"] == ASSISTANT]
        if self._is_marked(extras):
            spans = self._marked(messages, extras)
            spoken = sum(message["role"] == ASSISTANT for message in messages)
            # The first spans are those of turns that are part of the prompt.
            return spans[spoken - len(own) :] if first and len(spans) == spoken else spans
        found = []
        for place in own:
            before = self._render(messages[:place], extras, add_generation_prompt=True) if place else ""
            through = self._render(messages[: place + 1], extras)
            if not (text.startswith(through) and through.startswith(before)):
                raise DataError(
                    f"{self.data}: the chat template writes turn {place} of {_short(list(messages))} "
                    "otherwise when others follow it or it is about to begin, so the assistant's tokens "
                    "cannot be told apart; mark them in chat_template.jinja ({% generation %}), or leave "
                    "assistant_only_loss out"
                )
            found.append((len(before), len(through)))
        return tuple(found)

    def _is_marked(self, extras: dict[str, Any]) -> bool:
        template = self.tokenizer.get_chat_template(tools=extras.get("tools"))
        return _MARKED.search(template) is not None

    def _marked(self, messages: Sequence[Message], extras: dict[str, Any]) -> Spans:
        # Not `return_assistant_tokens_mask`: where the last character of a part is a space that the tokenizer
        # drops, it takes all that follows for the assistant's (transformers issue 47325).
        from transformers.utils.chat_template_utils import render_jinja_template

        tools = extras.get("tools")
        given = {name: value for name, value in extras.items() if name != "tools"}
        _, spans = render_jinja_template(
            conversations=[list(messages)],
            tools=tools,
            chat_template=self.tokenizer.get_chat_template(tools=tools),
            return_assistant_tokens_mask=True,
            **{**self.tokenizer.special_tokens_map, **given},
        )
        return tuple((int(start), int(end)) for start, end in spans[0])
