"""OPT's attention block, which views queries, keys and values by one head count."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.opt.modeling_opt import OPTAttention

from gqkva_convert.modeling.attention import grouped_attention


class GroupedOPTAttention(OPTAttention):  # type: ignore[misc]
    """`OPTAttention` for unequal numbers of stored heads."""

    def forward(
        self: Any,
        hidden_states: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the stock block's, with the stored heads of each projection counted by itself.

        Args:
            hidden_states: ``(batch, positions, hidden_size)``.
            past_key_values: The cache, which keeps stored heads.
            attention_mask: As the attention implementation takes it.
            options: Passed on to the attention function.
        """
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = (self.q_proj(hidden_states) * self.scaling).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        options.pop("output_attentions", None)
        dropout = self.dropout if self.training else 0.0
        output, weights = grouped_attention(
            self, query, key, value, attention_mask, dropout=dropout, scaling=1.0, **options
        )
        return self.out_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights
