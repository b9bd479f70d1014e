"""Tokens that a teacher puts in place of a text's: where they go, what they are, and that rows repeat."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor

from gqkva_convert.uptraining.objectives.resampling import NUMBERS, Resampling
from gqkva_convert.uptraining.objectives.runner import ModelRunner
from gqkva_convert.uptraining.rows.batches import IGNORED, Batch, causal_batch

WORDS, LENGTH = 24, 12


@pytest.fixture(scope="module")
def teacher() -> ModelRunner:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=WORDS, initializer_range=0.5, **shape)
    return ModelRunner(transformers.LlamaForCausalLM(config).eval(), has_head=True)


def rows_of(ids: Tensor, numbers: range, starts: tuple[int, ...] = (0,)) -> Batch:
    batch = causal_batch([{"input_ids": row.tolist(), "starts": list(starts)} for row in ids], padding=0)
    return {**batch, NUMBERS: torch.tensor(list(numbers))}


def test_tokens_are_drawn_from_what_the_teacher_expects(teacher: ModelRunner) -> None:
    """At a position whose text before was left alone, as often as the teacher's probabilities say."""
    count = 20_000
    text = torch.randint(WORDS, (1, 4), generator=torch.Generator().manual_seed(1))
    found = Resampling(teacher, 0.99, 0)(rows_of(text.expand(count, -1), range(count)))
    with torch.no_grad():
        wanted = teacher.model(text).logits[0, 1].softmax(-1)
    drawn = found["input_ids"][:, 2].bincount(minlength=WORDS) / count
    assert wanted.max() < 0.9
    # 1 in 100 keep the text's own.
    assert 0.5 * float((drawn - wanted).abs().sum()) < 0.03


def test_only_what_a_text_goes_on_with_is_replaced(teacher: ModelRunner) -> None:
    """No first token of a text, no padding; labels are the tokens that then come next."""
    count, starts = 200, (0, 5)
    ids = torch.randint(1, WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(2))
    batch = rows_of(ids, range(count), starts)
    short = causal_batch(
        [{"input_ids": ids[0, :9].tolist(), "starts": [0]}, {"input_ids": ids[1].tolist(), "starts": [0]}], 0
    )
    found = Resampling(teacher, 0.3, 0)(batch)
    assert NUMBERS not in found
    changed = found["input_ids"] != batch["input_ids"]
    assert not changed[:, list(starts)].any()
    free = count * (LENGTH - len(starts))
    assert 0.2 < int(changed.sum()) / free < 0.3  # some draws are the text's own token
    assert torch.equal(found["position_ids"], batch["position_ids"])
    here = found["labels"][:, :-1] != IGNORED
    assert torch.equal(here, batch["labels"][:, :-1] != IGNORED)
    assert torch.equal(found["labels"][:, :-1][here], found["input_ids"][:, 1:][here])
    padded = Resampling(teacher, 0.99, 0)({**short, NUMBERS: torch.tensor([0, 1])})
    assert int(padded["input_ids"][0, 9:].sum()) == 0
    assert torch.equal(padded["labels"] == IGNORED, short["labels"] == IGNORED)


def test_a_row_is_the_same_in_every_batch_and_another_under_every_number(teacher: ModelRunner) -> None:
    ids = torch.randint(1, WORDS, (8, LENGTH), generator=torch.Generator().manual_seed(3))
    resampling = Resampling(teacher, 0.5, 0)
    whole = resampling(rows_of(ids, range(8)))["input_ids"]
    parts = [resampling(rows_of(ids[n : n + 2], range(n, n + 2)))["input_ids"] for n in range(0, 8, 2)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(resampling(rows_of(ids, range(8, 16)))["input_ids"], whole)
    assert not torch.equal(Resampling(teacher, 0.5, 1)(rows_of(ids, range(8)))["input_ids"], whole)
    nothing = Resampling(teacher, 0.0, 0)(rows_of(ids, range(8)))
    assert torch.equal(nothing["input_ids"], ids)
