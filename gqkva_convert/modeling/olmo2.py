"""OLMo-2's attention block, whose norms take one statistic over all heads."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.olmo2.modeling_olmo2 import Olmo2Attention, Olmo2RMSNorm

from gqkva_convert.heads.layout import HeadLayout


class GroupedOlmo2RMSNorm(Olmo2RMSNorm):  # type: ignore[misc]
    """Root mean square over the attention heads: a stored head counts as often as it is read.

    Attributes:
        readers: How many attention heads read each stored head.
    """

    readers: tuple[int, ...]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise ``(..., stored heads * head_dim)``, in float32 as the stock norm does."""
        states = hidden_states.to(torch.float32)
        squares = states.pow(2).reshape(*states.shape[:-1], len(self.readers), -1).mean(-1)
        shares = squares.new_tensor(self.readers) / sum(self.readers)
        states = states * torch.rsqrt((squares * shares).sum(-1, keepdim=True) + self.variance_epsilon)
        normed: Tensor = self.weight * states
        return normed.to(hidden_states.dtype)


class GroupedOlmo2Attention(Olmo2Attention):  # type: ignore[misc]
    """`Olmo2Attention` with norms that stay the source's when groups are unequal."""

    def use_layout(self, layout: HeadLayout) -> None:
        """Take the numbers that the norms need from a layout."""
        for norm, heads in ((self.q_norm, layout.query), (self.k_norm, layout.key)):
            readers = tuple(heads.count(head) for head in range(len(set(heads))))
            if len(set(readers)) > 1:
                norm.__class__ = GroupedOlmo2RMSNorm
                norm.readers = readers
