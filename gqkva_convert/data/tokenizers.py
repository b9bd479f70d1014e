"""A tokenizer for a model that is made from nothing: another's, or one trained on the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gqkva_convert.data.records import read_records
from gqkva_convert.data.shapes import find_shape
from gqkva_convert.errors import DataError

PAD, END, BEGIN, MASK = "<pad>", "</s>", "<s>", "<mask>"
SPECIAL = (PAD, END, BEGIN, MASK)
# Bytes beside the special tokens: fewer entries cannot write every text.
_FEWEST = len(SPECIAL) + 256
# Characters that are enough to tell frequent words from rare ones.
_CHARACTERS = 50_000_000


def train_tokenizer(data: str, vocab_size: int, *, kind: str) -> Any:
    """Train byte-level BPE on the texts of a data set; the same for the same texts.

    Args:
        data: What to train on, as for training a model.
        vocab_size: Entries, special tokens and all 256 bytes among them; fewer where the texts have fewer.
        kind: ``causal``: texts as they are; ``seq2seq``: an end behind each; ``masked``: a begin and an end.

    Returns:
        A `transformers.PreTrainedTokenizerFast`.

    Raises:
        DataError: The data has no text, or the vocabulary has no room for all bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size <= _FEWEST:
        raise DataError(
            f"a vocabulary of {vocab_size}: {_FEWEST} entries alone are bytes and special tokens; give more"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(data), trainer)
    if tokenizer.get_vocab_size() <= _FEWEST:
        raise DataError(f"{data}: too little text to train a tokenizer on")
    around = {"causal": "$A", "seq2seq": f"$A {END}", "masked": f"{BEGIN} $A {END}"}[kind]
    if kind != "causal":
        ids = [(token, tokenizer.token_to_id(token)) for token in (BEGIN, END)]
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, bos_token=BEGIN, mask_token=MASK
    )


def _texts(data: str) -> Iterator[str]:
    read, match = 0, None
    for record in read_records(data, seed=0):
        match = match or find_shape(record)
        for text in _strings(match.values(record) if match is not None else {}):
            yield text
            read += len(text)
        if read >= _CHARACTERS:
            return


def _strings(value: Any) -> Iterator[str]:
    """Yield the texts of a record, those of its messages too: no tokenizer, no chat template."""
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)
