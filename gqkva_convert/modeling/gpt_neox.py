"""GPT-NeoX's attention block, which stores query, key and value of each head side by side."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention, apply_rotary_pos_emb

from gqkva_convert.heads.layout import ROLES
from gqkva_convert.modeling.attention import HeadMaps, grouped_attention


class GroupedGPTNeoXAttention(GPTNeoXAttention):  # type: ignore[misc]
    """`GPTNeoXAttention` for unequal numbers of stored heads."""

    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        layer_past: Any = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the stock block's; the fused projection may hold unequal numbers of heads.

        With as many query as key and value heads the fused projection holds q0 k0 v0, q1 k1 v1, ..., as the
        stock model's; otherwise all queries, then all keys, then all values.

        Args:
            hidden_states: ``(batch, positions, hidden_size)``.
            attention_mask: As the attention implementation takes it.
            layer_past: The cache, which keeps stored heads.
            position_embeddings: Cosine and sine ``(batch, positions, rotary features)``.
            options: Passed on to the attention function.
        """
        maps: HeadMaps = self.head_maps
        counts = [len(set(maps.layout.stored_heads(role))) for role in ROLES]
        states = self.query_key_value(hidden_states)
        if len(set(counts)) == 1:
            grid = states.view(*states.shape[:-1], counts[0], 3 * self.head_size).transpose(1, 2)
            query, key, value = grid.chunk(3, dim=-1)
        else:
            parts = states.split([count * self.head_size for count in counts], dim=-1)
            shape = (*states.shape[:-1], -1, self.head_size)
            query, key, value = (part.view(shape).transpose(1, 2) for part in parts)
        assert position_embeddings is not None
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = grouped_attention(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **options
        )
        return self.dense(output.reshape(*hidden_states.shape[:-1], -1)), weights
