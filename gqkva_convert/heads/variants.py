"""The meaning of `--gq` and `--gkv`."""

from __future__ import annotations

from dataclasses import dataclass

from gqkva_convert.errors import LayoutError, UsageError
from gqkva_convert.heads.layout import HeadLayout, divisors


@dataclass(frozen=True)
class Variant:
    """The layout that ``--gq`` and ``--gkv`` ask for.

    For h attention heads: ``gkv`` alone is GQA (MQA when 1), ``gq`` alone is GKVA (MKVA when 1), both
    together are GQKVA and need ``gq * gkv == h`` (Javadi et al., 2023, arXiv 2311.03426).

    Attributes:
        gq: Stored query heads, or None to keep one per attention head.
        gkv: Stored key/value heads, or None to keep those of the source.
    """

    gq: int | None
    gkv: int | None

    def __post_init__(self) -> None:
        if self.gq is None and self.gkv is None:
            raise UsageError("nothing to do: give --gkv, --gq or both")
        for option, value in (("--gq", self.gq), ("--gkv", self.gkv)):
            if value is not None and value < 1:
                raise LayoutError(f"{option} {value}: a model needs at least 1 head")

    @property
    def slug(self) -> str:
        """Return the variant in a folder name: ``gqa-8``, ``mqa``, ``gkva-2``, ``mkva``, ``gqkva-2.4``."""
        if self.gq is None:
            return "mqa" if self.gkv == 1 else f"gqa-{self.gkv}"
        if self.gkv is None:
            return "mkva" if self.gq == 1 else f"gkva-{self.gq}"
        return f"gqkva-{self.gq}.{self.gkv}"

    def layout(self, source: HeadLayout) -> HeadLayout:
        """Return the layout that this variant gives a block of ``source``'s shape, heads in neighbour order.

        Raises:
            LayoutError: The numbers do not fit; the message lists those that would.
        """
        if not source.is_stock_gqa:
            raise LayoutError(
                f"the source is {source.name}; its heads cannot be merged further, convert the original model"
            )
        heads, stored, head_dim = source.num_attention_heads, source.num_key_heads, source.head_dim
        if self.gq is None:
            assert self.gkv is not None
            if stored % self.gkv:
                raise LayoutError(
                    f"--gkv {self.gkv} does not divide {stored} key/value heads"
                    f"{self._shared_by(heads, stored)}; choose one of {divisors(stored)}"
                )
            return HeadLayout.gqa(heads, self.gkv, head_dim)
        if stored != heads:
            raise LayoutError(
                f"--gq {self.gq}: query heads can only be merged in a multi-head source, this one "
                f"has {stored} key/value heads for {heads} attention heads; use --gkv alone"
            )
        if self.gkv is None:
            if heads % self.gq:
                raise LayoutError(
                    f"--gq {self.gq} does not divide {heads} attention heads; choose one of {divisors(heads)}"
                )
            return HeadLayout.gkva(heads, self.gq, head_dim)
        if self.gq * self.gkv != heads:
            pairs = ", ".join(f"{gq} x {heads // gq}" for gq in divisors(heads))
            raise LayoutError(
                f"--gq {self.gq} --gkv {self.gkv} gives {self.gq * self.gkv} attention heads, the model "
                f"has {heads}; the pairs that work are {pairs}"
            )
        return HeadLayout.gqkva(self.gq, self.gkv, head_dim)

    @staticmethod
    def _shared_by(heads: int, stored: int) -> str:
        return "" if heads == stored else f" (shared by {heads} attention heads)"
