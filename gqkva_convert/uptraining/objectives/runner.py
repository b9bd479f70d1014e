"""Running a model for its losses: what goes into its head, hidden states, outputs of attention blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gqkva_convert.calibration.network import attention_blocks
from gqkva_convert.errors import TrainingError
from gqkva_convert.heads import Place
from gqkva_convert.uptraining.objectives.losses import Head
from gqkva_convert.uptraining.rows.batches import PRESENT, Batch

_NO_INPUTS = ("labels", PRESENT)


@dataclass
class ForwardPass:
    """Results of one forward pass.

    Attributes:
        head_input: Input of the head, ``(batch, positions, hidden)``; None for a model without one.
        output: The model's own output; its logits mean nothing where `head_input` is given.
        attention: Outputs of attention blocks by kind and layer, where asked for.
    """

    head_input: Tensor | None
    output: Any
    attention: dict[Place, Tensor] = field(default_factory=dict)


class ModelRunner:
    """Runs a model without its head, which losses apply chunk by chunk, and watches its attention blocks.

    Args:
        model: A transformers model.
        has_head: Whether it has a head over a vocabulary.
        watched: Whether outputs of attention blocks will be asked for.
    """

    def __init__(self, model: Any, *, has_head: bool, watched: bool = False) -> None:
        self.model = model
        self.has_head = has_head
        self.watched = watched
        self._record: dict[Place, Tensor] | None = None
        self._forced: dict[Place, Tensor] | None = None
        if watched:
            for place, block in attention_blocks(model).items():
                block.register_forward_pre_hook(self._cut, with_kwargs=True)
                block.register_forward_hook(self._hook(place))

    def _cut(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Keep gradients from leaving a block by its inputs while blocks are matched one by one."""
        if self._forced is None:
            return None
        cut = {name: value.detach() if isinstance(value, Tensor) else value for name, value in kwargs.items()}
        return tuple(value.detach() if isinstance(value, Tensor) else value for value in args), cut

    def _hook(self, place: Place) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            found = output[0] if isinstance(output, tuple) else output
            # Checkpointed layers run again in the backward pass, when nothing is recorded.
            if self._record is not None:
                self._record[place] = found
            if self._forced is None:
                return None
            forced = self._forced[place].to(found.dtype)
            return (forced, *output[1:]) if isinstance(output, tuple) else forced

        return hook

    def head(self) -> Head:
        """Return the model's head with its current weights."""
        module = self.model.get_output_embeddings()
        config = self.model.config
        scale = 1.0 / getattr(config, "logits_scaling", 1.0) * (getattr(config, "logit_scale", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        return Head(module.weight, getattr(module, "bias", None), scale, softcap)

    def run(
        self,
        batch: Batch,
        *,
        hidden: bool = False,
        attention: bool = False,
        forced: dict[Place, Tensor] | None = None,
    ) -> ForwardPass:
        """Run one forward pass.

        Args:
            batch: Inputs; ``labels`` are not passed.
            hidden: Whether hidden states are wanted.
            attention: Whether outputs of attention blocks are.
            forced: What attention blocks hand on instead of their own outputs.
        """
        inputs = self._inputs(batch)
        if hidden:
            inputs["output_hidden_states"] = True
        self._record = {} if attention or forced is not None else None
        self._forced = forced  # until the next pass: checkpointed layers run again in the backward pass
        try:
            # Compiled code does not see that blocks are watched now and were not before.
            watching = self._record is not None
            stance = torch.compiler.set_stance("force_eager") if watching else nullcontext()
            headless: AbstractContextManager[list[Tensor]] = (
                _headless(self.model) if self.has_head else nullcontext([])
            )
            with headless as taken, stance:
                output = self.model(**inputs)
            return ForwardPass(taken[0] if taken else None, output, self._record or {})
        finally:
            self._record = None

    def _inputs(self, batch: Batch) -> Batch:
        """Select the inputs of a batch that the model takes, on its device."""
        device = next(self.model.parameters()).device
        inputs = {name: value.to(device) for name, value in batch.items() if name not in _NO_INPUTS}
        return {**inputs, "use_cache": False} if "input_ids" in inputs else inputs

    @torch.no_grad()
    def check_head(self, batch: Batch) -> None:
        """Compare logits of the head alone with the model's own.

        Raises:
            TrainingError: They differ: the model does more with them than we know of.
        """
        few = {name: value[:1, :8] if value.ndim == 2 else value[:1] for name, value in batch.items()}
        found = self.run(few).head_input
        assert found is not None
        own = self.model(**self._inputs(few)).logits.float()
        ours = self.head().logits(found)
        error = float((ours - own).abs().max() / own.abs().max().clamp(min=1e-6))
        if not error < 0.02:
            raise TrainingError(
                f"{type(self.model).__name__} does more with its logits than its head says (off by "
                f"{error:.1%}); losses over its vocabulary cannot be computed in chunks"
            )


@contextmanager
def _headless(model: Any) -> Iterator[list[Tensor]]:
    """Collect the input of a model's head in a ``with`` block; its logits become one meaningless column."""
    head = model.get_output_embeddings()
    taken: list[Tensor] = []

    def take(hidden: Tensor) -> Tensor:
        taken.append(hidden)
        return hidden[..., :1]

    head.forward = take
    try:
        yield taken
    finally:
        del head.forward
