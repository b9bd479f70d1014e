"""Texts are recorded in order of length, each once, with little padding."""

from __future__ import annotations

from typing import Any

import torch

from gqkva_convert.calibration.capture import by_length


def texts(lengths: tuple[int, ...], first: int, **more: Any) -> dict[str, torch.Tensor]:
    """A padded batch whose tokens name their text."""
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length], mask[row, :length] = first + row, 1
    return {"input_ids": ids, "attention_mask": mask, **more}


def test_texts_of_like_length_share_a_batch() -> None:
    """No text is lost or cut, no batch is larger than the largest given, and padding shrinks."""
    batches = [texts((9, 2, 3), 1), texts((8, 8), 4), texts((1, 9, 2), 6)]
    found = by_length(batches)
    rows = [row for batch in found for row in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    kept = sorted(tuple(ids[mask.bool()].tolist()) for ids, mask in rows)
    assert kept == sorted(
        (n,) * length for n, length in zip(range(1, 9), (9, 2, 3, 8, 8, 1, 9, 2), strict=True)
    )
    assert max(batch["input_ids"].numel() for batch in found) <= 27
    padded = sum(int((batch["attention_mask"] == 0).sum()) for batch in found)
    assert padded < sum(int((batch["attention_mask"] == 0).sum()) for batch in batches) / 2
    for batch in found:
        assert batch["attention_mask"][:, -1].any()


def test_left_padding_is_kept_and_a_text_without_tokens_too() -> None:
    """Positions count from the right there."""
    left = {
        "input_ids": torch.tensor([[0, 0, 5], [6, 6, 6]]),
        "attention_mask": torch.tensor([[0, 0, 1], [1, 1, 1]]),
    }
    (found,) = by_length([left])
    assert sorted(found["input_ids"].tolist()) == [[0, 0, 5], [6, 6, 6]]
    empty = {
        "input_ids": torch.zeros(1, 4, dtype=torch.long),
        "attention_mask": torch.zeros(1, 4, dtype=torch.long),
    }
    assert by_length([empty])[0]["input_ids"].shape == (1, 1)


def test_other_inputs_stay_as_they_are() -> None:
    """Windows without a mask, images, and pairs whose two sides are of unlike length."""
    windows = [{"input_ids": torch.ones(2, 5, dtype=torch.long)}]
    pairs = [texts((2, 5), 1, decoder_input_ids=torch.ones(2, 3, dtype=torch.long))]
    for batches in (windows, pairs, [{"pixel_values": torch.zeros(2, 3, 4, 4)}]):
        assert by_length(batches) == batches
