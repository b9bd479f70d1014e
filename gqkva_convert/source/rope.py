"""Rotary settings of a configuration, under the keys of any version of transformers."""

from __future__ import annotations

from typing import Any

from gqkva_convert.architectures import NATIVE
from gqkva_convert.errors import FamilyError
from gqkva_convert.source.stock import stock_config

# Beyond it a number does not fit a float32.
_LARGEST = 3e38


def rope_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the rotary settings as transformers reads them, with ``rope_type`` and ``rope_theta``.

    Args:
        config: A configuration of any version: ``rope_parameters``, or ``rope_scaling`` and ``rope_theta``;
            the kind under ``rope_type`` or ``type``, or by an older name of it.

    Raises:
        FamilyError: transformers refuses them, or the base of the frequencies is no number above 0.
    """
    stored_settings(config)
    settings = _of_full_layers(dict(stock_config(config).rope_parameters or {}))
    positive_number(settings.get("rope_theta"), "rope_theta")
    return settings


def stored_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return what the configuration says under ``rope_scaling`` or ``rope_parameters``, unchanged.

    Raises:
        FamilyError: It is no JSON object, or one for each type of layer, or its factor is no number above 0.
    """
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    settings = config.get(key) or {}
    if not isinstance(settings, dict):
        raise FamilyError(f"config.json: {key} must be a JSON object, found {settings!r}")
    nested = [name for name, value in settings.items() if isinstance(value, dict)]
    if nested and config.get("model_type") in NATIVE:
        return _of_full_layers(settings)
    if nested:
        raise FamilyError(
            f"config.json: {key} says something else for each type of layer ({', '.join(nested)}), which "
            f"{config.get('model_type')} models of transformers do not read"
        )
    if settings.get("factor") is not None:
        positive_number(settings["factor"], f"factor of {key}")
    return settings


def _of_full_layers(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of layers that attend to all positions, where each type of layer has its own."""
    by_type = {name: value for name, value in settings.items() if isinstance(value, dict)}
    return dict(by_type.get("full_attention") or next(iter(by_type.values()), settings))


def positive_number(value: object, key: str) -> float:
    """Return a number above 0 of a configuration.

    Raises:
        FamilyError: It is something else.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < _LARGEST:
        raise FamilyError(f"config.json: {key} must be a number above 0, found {value!r}")
    return float(value)
