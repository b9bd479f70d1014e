"""The contexts at which models are measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gqkva_convert.errors import EvaluationError
from gqkva_convert.evaluation.speed.settings import BenchSettings
from gqkva_convert.evaluation.speed.workloads import (
    DECODER,
    ENCODER_DECODER,
    fixed_positions,
    kind_of,
    positions_of,
)

_CONTEXTS, _INPUTS = (4096, 32768), (512,)


def choose_contexts(models: Sequence[Any], settings: BenchSettings) -> tuple[int, ...]:
    """Choose contexts for models of one kind: the requested ones, or the usual ones that all have.

    Raises:
        EvaluationError: A model has too few positions for a context or for the new tokens.
    """
    wanted, new_tokens, kind = settings.context, settings.new_tokens, kind_of(models[0])
    most = min((limit for limit in map(positions_of, models) if limit is not None), default=None)
    if kind == ENCODER_DECODER and most is not None and new_tokens >= most:
        raise EvaluationError(f"--new-tokens {new_tokens}: the decoder has {most} positions")
    fixed = fixed_positions(models[0])
    if fixed is not None:
        if wanted not in (None, (fixed,)):
            raise EvaluationError(f"every input of this model has {fixed} positions; leave --context out")
        return (fixed,)
    if wanted is None:
        usual = _CONTEXTS if kind == DECODER else _INPUTS
        wanted = tuple(context for context in usual if most is None or context <= most)
        wanted = wanted or (most or usual[0],)
    if most is not None and max(wanted) > most:
        raise EvaluationError(f"--context {max(wanted)}: the model has {most} positions")
    if kind == DECODER and min(wanted) <= new_tokens:
        raise EvaluationError(
            f"--context {min(wanted)} is too short: its last positions are the {new_tokens} --new-tokens"
        )
    return wanted
