"""Rotary settings of a configuration, under the keys of any version of transformers."""

from __future__ import annotations

from typing import Any

from gqkva_convert.errors import FamilyError

# Beyond it a number does not fit a float32.
_LARGEST = 3e38


def rope_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the rotary settings as `rope_parameters` holds them, with ``rope_type`` and ``rope_theta``.

    Args:
        config: A configuration with ``rope_parameters``, or the older ``rope_scaling`` and ``rope_theta``.

    Raises:
        FamilyError: They are no JSON object, or the base of the frequencies is no number above 0.
    """
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(settings, dict):
        raise FamilyError(f"config.json: rope_parameters must be a JSON object, found {settings!r}")
    bases = settings.get("rope_theta"), config.get("rope_theta"), config.get("rotary_emb_base")
    theta = next((base for base in bases if base), 10000.0)
    positive_number(theta, "rope_theta")
    kind = str(settings.get("rope_type") or settings.get("type") or "default")
    return {**settings, "rope_type": kind, "rope_theta": theta}


def positive_number(value: object, key: str) -> float:
    """Return a number above 0 of a configuration.

    Raises:
        FamilyError: It is something else.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < _LARGEST:
        raise FamilyError(f"config.json: {key} must be a number above 0, found {value!r}")
    return float(value)
