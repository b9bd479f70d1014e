"""The order of the packages, from the ground up; `test_layers.py` holds it and the docs draw it."""

from __future__ import annotations

# Each entry imports itself and earlier entries; packages of one entry do not import each other.
ORDER = (
    ("_version", "errors", "options", "plots", "progress", "units"),
    ("heads",),
    ("architectures", "transforms", "checkpoint"),
    ("modeling",),
    ("data", "records"),
    ("calibration", "grouping"),
    ("source",),
    ("plans",),
    ("evaluation", "uptraining", "steps"),
    ("derivation",),
    ("refinement",),
    ("planning",),
    ("conversion",),
    ("runtimes",),
    ("description",),
    ("hub", "comparison"),
    ("demo_model",),
    ("recipes",),
    ("cli",),
)
