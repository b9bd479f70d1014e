"""Records as sequences of tokens: texts whole, cut or in pieces, pairs, targets; padded into batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from gqkva_convert.data.records import Record, text_columns
from gqkva_convert.errors import DataError
from gqkva_convert.modeling.loading import text_positions

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")
# Texts tokenised at once.
TEXTS = 256
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def sequence_length(wanted: int | None, model: Any, tokenizer: Any) -> int:
    """Choose the tokens of a sequence: what is asked for, or 2,048, or what the model reads.

    Raises:
        DataError: The model does not read as many as are asked for.
    """
    limits = [
        limit
        for limit in (text_positions(model.config), tokenizer.model_max_length)
        if isinstance(limit, int) and limit > 0
    ]
    most = min([2048 if wanted is None else wanted, *limits])
    if wanted is not None and most < wanted:
        raise DataError(f"sequences of {wanted} tokens: the model reads {most}")
    return most


def in_groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield consecutive groups of at most `size` items, as `itertools.batched` of Python 3.12 does."""
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group


def is_text(record: Record, *names: str) -> bool:
    """Return whether a record has a text that is not blank under all of some names."""
    return all(isinstance(record[name], str) and record[name].strip() for name in names)


def read_texts(records: Iterable[Record], *, keep_blank: bool = False) -> Iterator[str]:
    """Yield every text of every record, both sides of pairs included.

    Args:
        records: Records with the same columns.
        keep_blank: Yield texts without a word, too: they are the empty lines of running text.

    Raises:
        DataError: The records have no texts.
    """
    columns: tuple[str, ...] = ()
    for record in records:
        columns = columns or text_columns(record)
        for name in columns:
            text = record[name]
            if isinstance(text, str) and (keep_blank or text.strip()):
                yield text


def join_lines(texts: Iterable[str]) -> str:
    """Join the records of running text to one text, a line each."""
    return "".join(text.rstrip("\n") + "\n" for text in texts)


def tokenise(tokenizer: Any, texts: Sequence[str], *, joined: bool = False) -> list[list[int]]:
    """Return whole texts' token ids without special tokens; with `joined` those of one text, line by line."""
    if not texts:
        return []
    given = [join_lines(texts)] if joined else list(texts)
    found: list[list[int]] = tokenizer(given, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def cut_texts(
    tokenizer: Any, texts: Sequence[str], length: int, *, as_target: bool = False
) -> list[list[int]]:
    """Return token ids of texts, or of a decoder's targets, with special tokens and cut at `length`."""
    given = {"text_target" if as_target else "text": list(texts)}
    found: list[list[int]] = tokenizer(**given, truncation=True, max_length=length)["input_ids"]
    return found


def divide_texts(tokenizer: Any, texts: Sequence[str], length: int) -> list[list[int]]:
    """Return token ids of texts, cut into pieces of at most `length`, each with the special tokens."""
    cut = {"truncation": True, "max_length": length, "return_overflowing_tokens": True}
    return [list(ids) for ids in tokenizer(list(texts), **cut)["input_ids"]] if texts else []


def encode(tokenizer: Any, sentences: Sequence[Any], length: int) -> dict[str, Tensor]:
    """Make a batch of texts, or of pairs of texts that a model reads as one.

    Returns:
        The inputs of the model by name, ``(texts, positions)``, cut at `length` and padded on the right.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    encoded = tokenizer(
        list(sentences),
        truncation=True,
        max_length=length,
        padding=len(sentences) > 1,
        padding_side="right",
        return_tensors="pt",
    )
    return {name: encoded[name] for name in _INPUTS if name in encoded}


def pad(rows: Sequence[Any], value: int) -> tuple[Tensor, Tensor]:
    """Pad rows of tokens on the right.

    Returns:
        Tokens ``(rows, positions)``, and 1 where they are no padding.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tensors = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=value)
    present = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)
    return ids, present


def decoder_inputs(labels: Tensor, config: Any) -> Tensor:
    """Return the tokens that a decoder reads to write its targets: these, shifted behind its start token.

    Args:
        labels: Tokens of the targets, ``(rows, positions)``; -100 is padding.
        config: The model's configuration.
    """
    from transformers.models.bart.modeling_bart import shift_tokens_right

    pad_token, start = config.pad_token_id or 0, config.decoder_start_token_id
    shifted: Tensor = shift_tokens_right(labels, pad_token, pad_token if start is None else start)
    return shifted
