"""Work of a model that is measured: reading a prompt and generating, or one forward pass."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from gqkva_convert.evaluation.speed.caches import cache_tensors, make_cache, rewind
from gqkva_convert.modeling.loading import example_inputs, text_positions

DECODER, ENCODER_DECODER, FORWARD = "decoder", "encoder-decoder", "forward"


def kind_of(model: Any) -> str:
    """Return a model's kind of work: generating, generating from an encoder's output, or forward passes."""
    if not model.can_generate():
        return FORWARD
    return ENCODER_DECODER if model.config.is_encoder_decoder else DECODER


def positions_of(model: Any) -> int | None:
    """Return the positions that a model reads; None without a limit."""
    limit = getattr(model.config, "max_source_positions", None)
    return limit if isinstance(limit, int) else text_positions(model.config)


def fixed_positions(model: Any) -> int | None:
    """Return the positions of every input of a model that takes inputs of one size: images, recordings.

    Of models that take an image and a text, those of the text.
    """
    if hasattr(model.config, "num_mel_bins"):
        return int(model.config.max_source_positions)
    inputs = example_inputs(model)
    if "pixel_values" not in inputs:
        return None
    if "input_ids" in inputs:
        return int(inputs["input_ids"].shape[-1])
    with torch.inference_mode():
        moved = {key: _moved(value, model) for key, value in inputs.items()}
        return int(model(**moved, output_hidden_states=True).hidden_states[0].shape[1])


def make_work(model: Any, context: int, batch: int, new_tokens: int, cache: str, seed: int) -> Work:
    """Make the work of a model at one context and batch."""
    kinds = {DECODER: Generating, ENCODER_DECODER: Translating, FORWARD: Work}
    return kinds[kind_of(model)](model, context, batch, new_tokens, cache, seed)


class Work:
    """Forward passes of a model that generates nothing, on ``batch`` inputs of ``context`` positions."""

    def __init__(
        self, model: Any, context: int, batch: int, new_tokens: int, cache_kind: str, seed: int
    ) -> None:
        self.model, self.context, self.batch = model, context, batch
        self.new_tokens, self.cache_kind = new_tokens, cache_kind
        self.cache: Any = None
        self.token: Any = None
        self.encoded: Any = None
        self.inputs = {
            key: _moved(value, model)
            for key, value in self._inputs(example_inputs(model, seed), seed).items()
        }

    def _inputs(self, examples: dict[str, Any], seed: int) -> dict[str, Any]:
        """Make inputs of the requested sizes from one example."""
        shape = (
            (self.batch, *examples["input_ids"].shape[1:-1], self.context) if "input_ids" in examples else ()
        )
        made = {
            key: value.repeat_interleave(self.batch, 0) if isinstance(value, Tensor) else value
            for key, value in examples.items()
        }
        if shape and "pixel_values" not in examples and not self.model.config.is_encoder_decoder:
            made["input_ids"] = _tokens(self.model, shape, seed)
        return made

    def prefill(self, chunk: int) -> None:
        """Read the whole input; up to the first new token where a model generates.

        Args:
            chunk: Positions in one forward pass, where the input is read with a cache.
        """
        self.model(**self.inputs)

    def decode(self) -> None:
        """Generate the new tokens, greedily."""
        for _ in range(self.new_tokens):
            self.step()

    def step(self) -> None:
        """Generate one token."""
        raise NotImplementedError

    def rewind(self) -> None:
        """Rewind to the first new token."""

    def cache_tensors(self) -> list[Tensor]:
        """Return keys and values in the cache."""
        return [] if self.cache is None else cache_tensors(self.cache)

    def release(self) -> None:
        """Free the cache."""
        self.cache = None

    def _generate(self, *tokens: Tensor, **inputs: Any) -> Any:
        """Run the model with the cache, and keep its likeliest next token."""
        output = self.model(*tokens, **inputs, past_key_values=self.cache, use_cache=True)
        self.token = output.logits[:, -1:].argmax(-1)
        return output


class Generating(Work):
    """A language model with a prompt; the new tokens are the last of the context."""

    def _inputs(self, examples: dict[str, Any], seed: int) -> dict[str, Any]:
        return {"input_ids": _tokens(self.model, (self.batch, self.context), seed)}

    def prefill(self, chunk: int) -> None:
        self.cache = None  # before there is another
        self.cache = make_cache(self.model, self.cache_kind, self.context)
        options = {"logits_to_keep": 1} if keeps_logits(self.model) else {}
        for piece in self.inputs["input_ids"].split(chunk, 1):
            self._generate(piece, **options)

    def step(self) -> None:
        self._generate(self.token)

    def rewind(self) -> None:
        rewind(self.cache, self.context - self.new_tokens)


class Translating(Work):
    """An encoder-decoder model; the context is the encoder's, and the new tokens follow a start token."""

    def _inputs(self, examples: dict[str, Any], seed: int) -> dict[str, Any]:
        if "input_features" in examples:
            return {"input_features": examples["input_features"].repeat_interleave(self.batch, 0)}
        return {"input_ids": _tokens(self.model, (self.batch, self.context), seed)}

    def prefill(self, chunk: int) -> None:
        self.cache = None
        self.cache = make_cache(self.model, self.cache_kind, 1 + self.new_tokens)
        start = torch.zeros(self.batch, 1, dtype=torch.long, device=self.model.device)
        self.encoded = (self._generate(**self.inputs, decoder_input_ids=start).encoder_last_hidden_state,)

    def step(self) -> None:
        self._generate(encoder_outputs=self.encoded, decoder_input_ids=self.token)

    def rewind(self) -> None:
        rewind(self.cache, 1)

    def release(self) -> None:
        super().release()
        self.encoded = None


def keeps_logits(model: Any) -> bool:
    """Return whether a model can compute the last position's logits alone."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _tokens(model: Any, shape: tuple[int, ...], seed: int) -> Tensor:
    vocabulary = getattr(model.config, "text_config", model.config).vocab_size
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def _moved(value: Any, model: Any) -> Any:
    """Move an input to the model's device, numbers to its dtype."""
    if not isinstance(value, Tensor):
        return value
    return value.to(model.device, model.dtype if value.is_floating_point() else None)
