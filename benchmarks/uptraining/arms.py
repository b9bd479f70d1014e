"""The ways to convert and train that are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gqkva_convert.demo_model.demo import MODEL
from gqkva_convert.refinement.layerwise import FitSettings
from uptraining.library import WINDOW

CALIBRATION_WINDOWS = 256


@dataclass(frozen=True)
class Arm:
    """A way to merge heads and to train them.

    Attributes:
        conversion: Options of `gqkva_convert.convert`.
        training: Training settings.
        is_calibrated: Whether the conversion reads data.
        is_repeated: Whether calibration and training read the same few tokens repeatedly.
        is_divided: Whether the same number of heads is divided over the layers by the loss of each.
    """

    conversion: dict[str, Any]
    training: dict[str, Any]
    is_calibrated: bool = False
    is_repeated: bool = False
    is_divided: bool = False

    def passes_before(self, windows: int = CALIBRATION_WINDOWS) -> dict[str, int]:
        """Return the tokens that the conversion read and those that its fit read, counted at each reading."""
        if not self.is_calibrated:
            return {"calibration_tokens": 0, "fit_tokens": 0}
        settings, tokens = FitSettings(), windows * WINDOW
        is_fitted = "layerwise" in self.conversion.get("refine", "")
        steps = settings.steps_over(tokens) if is_fitted else 0
        return {"calibration_tokens": tokens, "fit_tokens": steps * settings.positions}


_DISTILLED = {"teacher": str(MODEL), "matching": 0.0}
_LAYERWISE = {"refine": "layerwise,output"}
_FOUR_EPOCHS = {
    **{**_DISTILLED, "loss": {"kl": 1.0, "hidden": 1.0}},
    **{"learning_rate": 3e-4, "batch_size": 8, "num_train_epochs": 4},
}
_EIGHT_RESAMPLED = {
    **{**_FOUR_EPOCHS, "loss": {"kl": 1.0, "hidden": 10.0}},
    **{"num_train_epochs": 8, "resample": 0.25},
}

CURVES = {
    "mean, task": Arm({"merge": "mean"}, {"learning_rate": 1e-3}),
    "mean, kl": Arm({"merge": "mean"}, {**_DISTILLED, "learning_rate": 1e-3}),
    "aligned, kl": Arm({"merge": "aligned-rescaled"}, {**_DISTILLED, "learning_rate": 1e-3}),
    "closed form, task": Arm({"merge": "closed-form"}, {"learning_rate": 5e-4}),
    "closed form, kl": Arm({"merge": "closed-form"}, {**_DISTILLED, "learning_rate": 5e-4}),
    "closed form, matching, kl": Arm(
        {},
        {"teacher": str(MODEL), "matching_learning_rate": 4e-3, "learning_rate": 5e-4},
        is_calibrated=True,
    ),
    "closed form, layer-wise, kl": Arm(_LAYERWISE, {**_DISTILLED, "learning_rate": 5e-4}, is_calibrated=True),
}
BUDGETS = {
    "closed form, matching, kl": Arm(
        {},
        {**CURVES["closed form, matching, kl"].training, "batch_size": 4, "matching": 0.6},
        is_calibrated=True,
    ),
    "closed form, layer-wise, kl": Arm(
        _LAYERWISE, {**_DISTILLED, "learning_rate": 5e-4, "batch_size": 4}, is_calibrated=True
    ),
    "closed form, layer-wise, four epochs": Arm(
        _LAYERWISE, _FOUR_EPOCHS, is_calibrated=True, is_repeated=True
    ),
    "closed form, layer-wise, eight epochs resampled": Arm(
        _LAYERWISE, _EIGHT_RESAMPLED, is_calibrated=True, is_repeated=True
    ),
    "heads divided over layers, layer-wise, eight epochs resampled": Arm(
        _LAYERWISE, _EIGHT_RESAMPLED, is_calibrated=True, is_repeated=True, is_divided=True
    ),
}
