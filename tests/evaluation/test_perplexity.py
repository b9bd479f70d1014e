"""The loss must be the one transformers computes, whatever the batches; agreement what it says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny_models
import torch

from gqkva_convert.data.processors import load_processor
from gqkva_convert.data.python_library import iter_texts
from gqkva_convert.demo_model.demo import MODEL
from gqkva_convert.evaluation.perplexity import language_loss, load_causal_lm, score_windows
from gqkva_convert.evaluation.windows import Window, rolling_windows


def test_the_loss_is_that_of_transformers_token_by_token(llama: Path) -> None:
    """Off-by-one targets and padding that counts are the classic mistakes of perplexity."""
    model = tiny_models.load(llama, "LlamaForCausalLM")
    generator = torch.Generator().manual_seed(2)
    lengths = (2, 5, 7, 7, 11, 1)
    sequences = [torch.randint(37, (length,), generator=generator).tolist() for length in lengths]
    total, count = 0.0, 0
    for sequence in sequences[:-1]:  # one token alone predicts nothing
        ids = torch.tensor([sequence])
        with torch.inference_mode():
            loss = model(input_ids=ids, labels=ids).loss.item()
        total += loss * (len(sequence) - 1)
        count += len(sequence) - 1
    for batch_tokens in (1, 16, 1000):
        found = language_loss(model, sequences, batch_tokens=batch_tokens)
        assert found.tokens == count
        assert found.nats_per_token == pytest.approx(total / count, rel=1e-5)
        assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-4)


def test_progress_counts_every_predicted_token(llama: Path) -> None:
    """A bar that stops at 93 % looks like a hang."""
    model = tiny_models.load(llama, "LlamaForCausalLM")
    seen: list[int] = []
    loss = language_loss(model, [[1, 2, 3], [4, 5], [6, 7, 8, 9]], batch_tokens=4, progress=seen.append)
    assert sum(seen) == loss.tokens == 6


def test_a_text_is_as_likely_as_lm_eval_finds_it() -> None:
    """The rolling log-likelihood of lm-evaluation-harness, text by text, on the built-in model."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    instances = pytest.importorskip("lm_eval.api.instance")
    model, tokenizer = load_causal_lm(MODEL), load_processor(MODEL, "AutoTokenizer")
    texts = [text[:2500] for _, text in iter_texts(held_out=True)][:4]
    harness = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=4)
    requests = [instances.Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    expected = harness.loglikelihood_rolling(requests, disable_tqdm=True)
    windows = []
    for number, text in enumerate(texts):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        windows += rolling_windows(tokens, tokenizer.bos_token_id, 256, 256, number)
    scores = score_windows(model, None, windows, batch_tokens=1024)
    found = scores.gathered([window.document for window in windows]).column("nats")
    assert -found == pytest.approx(expected, rel=1e-5)
    assert len(windows) > len(texts)


def test_agreement_is_measured_token_by_token(llama: Path) -> None:
    """KL, the likeliest token and the five likeliest, against the definitions, on targets alone."""
    model, other = tiny_models.load(llama, "LlamaForCausalLM"), tiny_models.load(llama, "LlamaForCausalLM")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    ids = torch.randint(37, (3, 10), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        ours, theirs = (
            each(input_ids=ids).logits.double().log_softmax(-1)[:, 4:9] for each in (model, other)
        )
    windows = [Window(row[:9].tolist(), row[5:].tolist()) for row in ids]
    scores = score_windows(model, other, windows)
    divergence = (theirs.exp() * (theirs - ours)).sum((1, 2))
    assert scores.column("divergence") == pytest.approx(divergence.numpy(), rel=1e-4)
    first = (ours.argmax(-1) == theirs.argmax(-1)).sum(1)
    assert scores.column("first").tolist() == first.tolist()
    top, likeliest = (each.topk(5).indices for each in (ours, theirs))
    shared = [
        [len({*a.tolist()} & {*b.tolist()}) / 5 for a, b in zip(x, y, strict=True)]
        for x, y in zip(top, likeliest, strict=True)
    ]
    assert scores.column("five") == pytest.approx([sum(row) for row in shared], rel=1e-6)
    alike = score_windows(model, model, windows)
    assert alike.column("divergence").max() == 0
    assert (alike.column("first") == alike.column("answers")).all()
    assert alike.column("five") == pytest.approx(alike.column("answers"))
