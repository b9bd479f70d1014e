"""The parts of a measurement: caches that rewind, bytes that are counted, rows that are made to fit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch

from gqkva_convert.evaluation.speed.fit import Fit, Needs, fit
from gqkva_convert.evaluation.speed.memory import PeakMemory, bytes_read, storage_bytes
from gqkva_convert.evaluation.speed.timing import Clock, measure_bandwidth, quartiles
from gqkva_convert.evaluation.speed.workloads import Generating, make_work
from gqkva_convert.modeling.loading import load_model


@pytest.mark.parametrize("cache", ["static", "dynamic"])
@pytest.mark.parametrize("chunk", [20, 7])
def test_decoding_after_rewinding_is_what_the_whole_text_gives(
    cache: str, chunk: int, tiny: Callable[[str], Path]
) -> None:
    """A cache rewound to the wrong place, or read too far, would time other work than generation."""
    model = load_model(tiny("llama"), "LlamaForCausalLM")
    work = make_work(model, context=20, batch=2, new_tokens=6, cache=cache, seed=3)
    assert isinstance(work, Generating)
    text = work.inputs["input_ids"]
    with torch.inference_mode():
        work.prefill(chunk)
        assert work.token.tolist() == model(text).logits[:, -1:].argmax(-1).tolist()
        known = text[:, :15]  # the new tokens take places 14 to 19
        for _ in range(6):
            known = torch.cat([known, model(known).logits[:, -1:].argmax(-1)], 1)
        for _ in range(2):
            work.rewind()
            work.token = text[:, 14:15]
            work.decode()
            assert work.token.tolist() == known[:, -1:].tolist()
            assert storage_bytes(work.cache_tensors()) >= 20 * 2 * 2 * 6 * 2 * 4 * 4


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_decoding_an_encoder_decoder_reads_what_was_encoded(cache: str, tiny: Callable[[str], Path]) -> None:
    """A cross-attention cache that is made anew at each token would not be a cache."""
    model = load_model(tiny("bart"), "BartForConditionalGeneration")
    work = make_work(model, context=11, batch=2, new_tokens=4, cache=cache, seed=1)
    with torch.inference_mode():
        work.prefill(11)
        text = torch.zeros(2, 1, dtype=torch.long)
        for _ in range(5):
            logits = model(**work.inputs, decoder_input_ids=text, use_cache=False).logits
            text = torch.cat([text, logits[:, -1:].argmax(-1)], 1)
        assert work.token.tolist() == text[:, 1:2].tolist()
        first = work.token
        for _ in range(2):
            work.rewind()
            work.token = first
            work.decode()
            assert work.token.tolist() == text[:, -1:].tolist()


@pytest.mark.parametrize("window", [5, 30])
@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_windows_can_be_rewound(cache: str, window: int) -> None:
    """A sliding window bounds a static cache; a dynamic one holds on to the prompt until it is copied."""
    model = tiny_models.build("mistral", "MistralForCausalLM", sliding_window=window)
    work = make_work(model, context=24, batch=1, new_tokens=4, cache=cache, seed=0)
    with torch.inference_mode():
        work.prefill(24)
        kept = min(window, 24) if cache == "static" else 24
        assert storage_bytes(work.cache_tensors()) == kept * 2 * 2 * tiny_models.HEADS * 4 * 4
        for _ in range(3):
            work.rewind()
            work.decode()


def test_a_step_reads_all_weights_but_tables(tiny: Callable[[str], Path]) -> None:
    """The floor is only one if it counts what a step reads, no more."""
    model = load_model(tiny("llama"), "LlamaForCausalLM")
    table = model.get_input_embeddings().weight
    with torch.inference_mode():
        read = bytes_read(model, lambda: model(torch.zeros(1, 1, dtype=torch.long)))
    assert read == sum(weight.nbytes for weight in model.parameters()) - table.nbytes


def test_a_step_of_an_encoder_decoder_reads_no_encoder(tiny: Callable[[str], Path]) -> None:
    """Nor the projections whose keys and values are in the cache."""
    model = load_model(tiny("bart"), "BartForConditionalGeneration")
    work = make_work(model, context=9, batch=1, new_tokens=2, cache="static", seed=0)
    with torch.inference_mode():
        work.prefill(9)
        work.rewind()
        read = bytes_read(model, work.step)
    expected = {"lm_head.weight": model.lm_head.weight}
    for name, weight in model.model.decoder.named_parameters():
        if "embed_" not in name.removesuffix("layernorm_embedding.weight") or "layernorm" in name:
            expected[name] = weight
    skipped = ("encoder_attn.k_proj", "encoder_attn.v_proj")
    assert read == sum(
        weight.nbytes for name, weight in expected.items() if not any(part in name for part in skipped)
    )


def test_storages_are_counted_once() -> None:
    """A view keeps all of its storage, and two views no more than that."""
    whole = torch.zeros(10, 7)
    assert storage_bytes([whole[:3], whole[5:], torch.zeros(2)]) == 280 + 8


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_peak_memory_is_what_the_work_took() -> None:
    """Also after the memory was given back, and without what earlier work took."""
    torch.zeros(2**24).add_(1)
    meter = PeakMemory(torch.device("cpu"))
    meter.begin()
    torch.ones(2**23).add_(1)  # 32 MiB
    grown = meter.growth()
    assert grown is not None
    assert 0.9 * 2**25 < grown < 1.3 * 2**25


def test_quartiles() -> None:
    assert quartiles([3.0, 1.0, 2.0, 5.0, 4.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_bandwidth_counts_copies_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy reads and writes."""
    monkeypatch.setattr("gqkva_convert.evaluation.speed.timing._CPU_BUFFER", 2**10)
    monkeypatch.setattr(Clock, "seconds", lambda self, work: 0.5)
    found = measure_bandwidth(Clock(torch.device("cpu")), torch.bfloat16)
    assert found == {"read": 2**11, "copy": 2**12}


def needs(cache: int, a_position: int) -> Needs:
    return Needs(cache, lambda chunk: a_position * chunk)


def test_rows_that_fit_are_measured_together_and_whole() -> None:
    both = {"converted": needs(100, 1), "original": needs(400, 1)}
    assert fit(both, 1000, 2000, True) == Fit((("converted", "original"),), 1000)
    assert fit(both, 1000, None, True) == Fit((("converted", "original"),), 1000)


def test_prompts_are_divided_before_a_row_is_given_up() -> None:
    """Both models get the same pieces, or the comparison would not be one."""
    both = {"converted": needs(100, 1), "original": needs(400, 1)}
    assert fit(both, 2048, 2000, True) == Fit((("converted", "original"),), 1024)


def test_models_that_do_not_fit_together_are_measured_apart() -> None:
    both = {"converted": needs(900, 1), "original": needs(1500, 1)}
    assert fit(both, 200, 2000, True) == Fit((("converted",), ("original",)), 200)


def test_a_model_that_does_not_fit_is_skipped_with_the_reason() -> None:
    """The smaller one is the better for it: it still runs."""
    both = {"converted": needs(900 * 10**6, 1), "original": needs(3600 * 10**6, 1)}
    found = fit(both, 200, 2 * 10**9, True)
    assert found.together == (("converted",),)
    assert found.skipped == {"original": "needs about 3.60 GB beside the weights; 2.00 GB are free"}
    assert fit({"converted": needs(0, 10**6)}, 4096, 10**9, False).together == ()
