"""DINOv2's attention block, which older transformers view by one head count."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.dinov2 import modeling_dinov2

from gqkva_convert.modeling.attention import grouped_attention

# Renamed, with its projections, between transformers 5.17 and 5.23; the newer one counts no heads.
_Stock: Any = getattr(modeling_dinov2, "Dinov2SelfAttention", modeling_dinov2.Dinov2Attention)


class GroupedDinov2Attention(_Stock):  # type: ignore[misc]
    """The stock block with the stored heads of each projection counted by itself."""

    def forward(self, hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
        """As the stock block's, on ``(batch, positions, hidden_size)``."""
        if hasattr(self, "q_proj"):
            return super().forward(hidden_states, *arguments, **options)
        shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        query, key, value = (
            projection(hidden_states).view(shape).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        dropout = self.dropout_prob if self.training else 0.0
        output, weights = grouped_attention(
            self, query, key, value, None, dropout=dropout, scaling=self.scaling, is_causal=self.is_causal
        )
        return output.reshape(*hidden_states.shape[:-1], -1), weights
