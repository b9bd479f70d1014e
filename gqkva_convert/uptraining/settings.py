"""Settings of a training run: checked once, written beside the run, read from files."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from gqkva_convert.checkpoint.yamlfile import read_yaml
from gqkva_convert.data.shapes import renamed_columns
from gqkva_convert.errors import TrainingError
from gqkva_convert.uptraining.quantities import Count, Share, Weights

TERMS = ("task", "kl", "hidden", "attention")


# What means nothing without a teacher.
_WITH_TEACHER = (
    *("matching", "matching_learning_rate", "stop_within", "temperature"),
    *("teacher_dtype", "teacher_device", "resample"),
)

# How images are changed at random.
Augment = Literal["shift", "randaugment"]


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class TrainingSettings(BaseModel):
    """Everything that decides a run's result, but the model.

    Names are those of transformers' and accelerate's settings wherever they exist. Sizes of a batch are for
    all processes together, so that a run means the same on one process and on many.

    Attributes:
        data: What to train on, as for calibration: a file, a folder, a Hub id or a short name.
        held_out: Data to measure on; by default rows of ``data`` that are not trained on.
        held_out_rows: Most rows to measure on.
        streaming: Read records as they are needed rather than prepare all of the run's on disk first.
        column: Columns of ``data`` and ``held_out`` to read, or ``KNOWN=NAME`` where a known column has
            another name.
        assistant_only_loss: Train and measure causal language models on answers alone: an assistant's turns,
            completions. ``task``, ``kl`` and ``resample`` see these tokens only; ``hidden``, ``attention``
            and ``matching`` compare states at all tokens, which the answers attend to.
        packing: Fill each row with several texts that do not see each other.
        length: Tokens a row; by default 2,048 or as many as the model reads.
        augment: Change images at random: ``shift`` shifts and mirrors them, ``randaugment`` also changes
            their colours and shapes.
        mixup: Alpha of the proportions that images are mixed in, two by two (0.2 to 0.8 in practice); 0 mixes
            none.
        teacher: The source model, or a folder of `gqkva teacher`.
        loss: Weights of the terms ``task``, ``kl``, ``hidden`` and ``attention``; by default ``kl`` with a
            teacher (``hidden`` for models without logits) and ``task`` without.
        temperature: Divides both models' logits in ``kl``.
        resample: Share of a text's tokens that are replaced by what the teacher expects there, others each
            time a row is read: for few texts that are gone over again.
        matching: Share of the budget that first matches each attention block to the teacher's on its own;
            by default half of it, where there is a teacher and all of attention is trained.
        matching_learning_rate: Its learning rate at width 256; less for wider models.
        tokens: Budget in tokens.
        samples: Budget in rows (images, pairs).
        alpha: Budget as a share of ``pretraining_tokens``, as the GQA paper counts.
        pretraining_tokens: Tokens the source was trained on.
        num_train_epochs: How often the budget's rows are gone over, in a new order each time.
        train: What is trained: ``all``, ``attention``, ``kv`` or ``lora``.
        merged_rate: Learning rate of merged projections relative to the others'.
        lora_rank: Rank of LoRA's updates.
        batch_size: Rows a step, of all processes.
        per_device_batch_size: Rows of one forward pass; by default a process's whole share.
        learning_rate: Highest learning rate.
        lr_scheduler_type: ``cosine``, ``linear``, ``wsd`` (warm-up, stable, decay) or ``constant``.
        warmup_ratio: Share of the steps over which the rate rises.
        weight_decay: AdamW's, on matrices.
        max_grad_norm: Longest gradient; longer ones are shortened.
        optim: ``adamw`` or ``adamw_8bit`` (needs bitsandbytes).
        ema: Decay of the running mean of weights that is measured and kept; None for none.
        mixed_precision: ``no``, ``bf16`` or ``fp16``; by default what accelerate was started with.
        gradient_checkpointing: Recompute activations rather than keep them.
        torch_compile: Compile the model.
        liger: Use Liger's fused kernels (needs liger-kernel).
        teacher_dtype: Dtype of the teacher; by default bfloat16 on accelerators, float32 on CPUs.
        teacher_device: Where the teacher runs, if not beside the student.
        evaluation_steps: Steps between measurements on held-out data; by default a tenth of the run.
        save_steps: Steps between checkpoints; by default as `evaluation_steps`.
        save_total_limit: Checkpoints kept.
        stop_within: Stop once the held-out loss is within this share of the teacher's.
        nan_limit: Steps with a loss that is not finite after which the run stops; they are left out.
        seed: Seed of everything drawn.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: str
    held_out: str | None = None
    held_out_rows: Count = 128
    streaming: bool = False
    column: Annotated[tuple[str, ...], BeforeValidator(_one_or_several)] = ()
    assistant_only_loss: bool = False
    packing: bool = True
    length: Annotated[Count, Field(ge=2)] | None = None
    augment: Augment | None = None
    mixup: Annotated[float, Field(ge=0)] = 0.0
    teacher: str | None = None
    loss: Weights = {}
    temperature: Annotated[float, Field(gt=0)] = 1.0
    resample: Annotated[Share, Field(lt=1)] = 0.0
    matching: Share | None = None
    matching_learning_rate: Annotated[float, Field(gt=0)] = 4e-3
    tokens: Count | None = None
    samples: Count | None = None
    alpha: Annotated[Share, Field(gt=0)] | None = None
    pretraining_tokens: Count | None = None
    num_train_epochs: Count = 1
    train: Literal["all", "attention", "kv", "lora"] = "all"
    merged_rate: Annotated[float, Field(gt=0)] = 1.0
    lora_rank: Count = 16
    batch_size: Count = 32
    per_device_batch_size: Count | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    lr_scheduler_type: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    warmup_ratio: Share = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    optim: Literal["adamw", "adamw_8bit"] = "adamw"
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    liger: bool = False
    teacher_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    teacher_device: str | None = None
    evaluation_steps: Count | None = None
    save_steps: Count | None = None
    save_total_limit: Count = 2
    stop_within: Annotated[Share, Field(gt=0)] | None = None
    nan_limit: Count = 10
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _fit_together(self) -> TrainingSettings:
        unknown = sorted(set(self.loss) - set(TERMS))
        if unknown:
            raise ValueError(f"no loss {', '.join(unknown)}; choose of {', '.join(TERMS)}")
        if self.loss and not any(self.loss.values()):
            raise ValueError("every weight of loss is 0; give at least one term a weight")
        with_teacher = [name for name, weight in self.loss.items() if name != "task" and weight]
        if with_teacher and self.teacher is None:
            raise ValueError(f"loss {', '.join(with_teacher)} needs a teacher; name the source model")
        fields = type(self).model_fields
        changed = [name for name, field in fields.items() if getattr(self, name) != field.default]
        for name in changed:
            if name in _WITH_TEACHER and getattr(self, name) and self.teacher is None:
                raise ValueError(f"{name} needs a teacher; name the source model")
        if "lora_rank" in changed and self.train != "lora":
            raise ValueError("lora_rank is for train lora; give that, too, or leave it out")
        if self.streaming and self.num_train_epochs > 1:
            raise ValueError(
                "num_train_epochs goes over rows again, which a stream does not keep; leave streaming out, "
                "or give a larger budget"
            )
        budgets = [name for name in ("tokens", "samples", "alpha") if getattr(self, name) is not None]
        if len(budgets) != 1:
            found = " and ".join(budgets) or "none"
            raise ValueError(
                f"give one budget: tokens, samples, or alpha with pretraining_tokens; found {found}"
            )
        if (self.alpha is None) != (self.pretraining_tokens is None):
            raise ValueError("alpha and pretraining_tokens go together")
        renamed_columns(self.column)
        return self

    @property
    def token_budget(self) -> int | None:
        """Return the tokens to train on, each epoch; None where the budget is in rows."""
        if self.alpha is not None and self.pretraining_tokens is not None:
            return max(1, math.ceil(self.alpha * self.pretraining_tokens))
        return self.tokens


def make_settings(values: dict[str, Any], where: str = "") -> TrainingSettings:
    """Make settings of options or of a file's values.

    Args:
        values: Values by name; None counts as not given.
        where: What to call them in an error, such as a file's path.

    Raises:
        TrainingError: A name is unknown or a value cannot be.
    """
    prefix = f"{where}: " if where else ""
    for name in values:
        if name not in TrainingSettings.model_fields:
            near = difflib.get_close_matches(name, TrainingSettings.model_fields, 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise TrainingError(f"{prefix}no setting {name!r}{meant}")
    try:
        return TrainingSettings(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise TrainingError(f"{prefix}{name} is missing; name what to train on with --data") from error
        message = first["msg"].removeprefix("Value error, ")
        found = f" (found {first['input']!r})" if name else ""
        raise TrainingError(f"{prefix}{f'{name}: ' if name else ''}{message}{found}") from error


def choose_settings(
    settings: TrainingSettings | str | Path | None, arguments: Mapping[str, Any]
) -> TrainingSettings:
    """Return settings that were given whole, or those of a file and of a public function's arguments.

    Args:
        settings: Settings, a YAML file of them, or None.
        arguments: The function's arguments; they replace what the file says.

    Raises:
        TrainingError: Something in them cannot be, or arguments come with whole settings.
    """
    given = _given_settings(arguments)
    if isinstance(settings, TrainingSettings):
        if given:
            raise TrainingError(f"settings say everything themselves; leave out {_spelled(given, arguments)}")
        return settings
    if settings is None:
        return make_settings(given)
    return make_settings({**read_settings(Path(settings)), **given}, str(settings))


def refuse_settings(settings: object, arguments: Mapping[str, Any]) -> None:
    """Refuse settings of a run that resumes.

    Raises:
        TrainingError: There are some.
    """
    given = _given_settings(arguments)
    if given or settings is not None:
        wrong = _spelled(given, arguments) if given else "--settings"
        raise TrainingError(f"--resume goes on with the settings it began with; leave out {wrong}")


def _given_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings among a public function's arguments, with paths as text."""
    named = {name: arguments[name] for name in TrainingSettings.model_fields if name in arguments}
    given = {name: value for name, value in named.items() if value is not None} | arguments["others"]
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}


def _spelled(given: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Return the option that gave the first of some settings."""
    first = next(iter(given))
    return f"--{first.replace('_', '-')}" if first in arguments else "--set"


def read_settings(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings, not yet checked against each other.

    Raises:
        TrainingError: It is missing, or not a mapping.
    """
    found = read_yaml(path, TrainingError)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise TrainingError(f"{path} is not a mapping of settings to values")
    return found
