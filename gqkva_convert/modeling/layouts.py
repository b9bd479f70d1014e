"""Head layouts as a model's configuration names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gqkva_convert.errors import LayoutError
from gqkva_convert.heads.layout import HeadLayout

# The configuration key.
LAYOUTS = "attention_layouts"


def layouts_to_config(layouts: Mapping[tuple[str, int], HeadLayout]) -> dict[str, list[dict[str, Any]]]:
    """Return layouts by kind of attention and layer as configuration data; equal layouts share an entry.

    Returns:
        For each kind a list such as ``[{"layers": [0, 1], "variant": "GQKVA-2.4", "query": [...], ...}]``.
    """
    config: dict[str, list[dict[str, Any]]] = {}
    for (kind, layer), layout in layouts.items():
        entries = config.setdefault(kind, [])
        entry = {"variant": layout.name, **layout.to_dict()}
        for known in entries:
            if {key: value for key, value in known.items() if key != "layers"} == entry:
                known["layers"].append(layer)
                break
        else:
            entries.append({"layers": [layer], **entry})
    return config


def layouts_from_config(config: Any) -> dict[tuple[str, int], HeadLayout]:
    """Read what `layouts_to_config` wrote; ``variant`` is for people and not read.

    Raises:
        LayoutError: It is not such data, or names a layer twice.
    """
    layouts: dict[tuple[str, int], HeadLayout] = {}
    try:
        for kind, entries in config.items():
            for entry in entries:
                layout = HeadLayout.from_dict(entry)
                for layer in entry["layers"]:
                    if type(layer) is not int or (kind, layer) in layouts:
                        raise LayoutError(f"attention_layouts: {kind} names layer {layer!r} twice or oddly")
                    layouts[kind, layer] = layout
    except (AttributeError, KeyError, TypeError) as error:
        raise LayoutError(f"attention_layouts is not readable: {error!r}") from error
    return layouts
