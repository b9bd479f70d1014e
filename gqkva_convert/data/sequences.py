"""Records as sequences of tokens: texts whole, cut or in pieces, pairs, targets; padded into batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from gqkva_convert.data.documents import Document
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


def tokenise_documents(
    tokenizer: Any, documents: Sequence[Document], *, joined: bool = False
) -> list[tuple[list[int], list[bool] | None]]:
    """Return documents' token ids, without special tokens but their own, and which of them answer.

    A token answers where one of its characters does; None where all tokens count.

    Args:
        tokenizer: The model's own.
        documents: The documents.
        joined: Whether they are lines of one text.

    Raises:
        DataError: The tokenizer does not say which characters its tokens stand for.
    """
    if not documents or all(document.answers is None for document in documents):
        texts = [document.text for document in documents]
        return [(ids, None) for ids in tokenise(tokenizer, texts, joined=joined)]
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not say which characters its tokens stand for, so answers "
            "cannot be told apart; leave assistant_only_loss out"
        )
    found = tokenizer(
        [document.text for document in documents],
        add_special_tokens=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    masks = [
        [any(first < end and start < last for start, end in document.answers or ()) for first, last in places]
        for document, places in zip(documents, found["offset_mapping"], strict=True)
    ]
    return list(zip(found["input_ids"], masks, strict=True))


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
