"""GGUF tensors of an export: which steps each is made of, and its bytes, a few rows at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gqkva_convert.architectures import NEVER, Attention
from gqkva_convert.architectures.gguf import RuntimeFamily, Shape
from gqkva_convert.checkpoint.dtypes import FLOATS
from gqkva_convert.checkpoint.reader import Bytes, TensorReader
from gqkva_convert.errors import FamilyError, NotExpressibleError, WeightError
from gqkva_convert.plans.plan import Plan
from gqkva_convert.runtimes.gguf.package import load_gguf
from gqkva_convert.source.model import SourceModel, active_norms, config_number, family_of, has_bias
from gqkva_convert.steps.compute import step_bytes
from gqkva_convert.steps.merged_blocks import MergedBlocks
from gqkva_convert.steps.step import Step, Steps
from gqkva_convert.transforms.precision import STORED, Array, decode, is_finite

# Names on the command line, and in GGUF.
DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
# Types of tensors without --dtype; float64 is not written.
_KEPT = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F32"}

# Source bytes of the rows that are handled at once.
BLOCK_BYTES = 4 << 20
# Tensors of the attention projections by the roles that each holds.
_PROJECTIONS = {
    ("query",): "attn_q",
    ("key",): "attn_k",
    ("value",): "attn_v",
    ("output",): "attn_output",
    ("query", "key", "value"): "attn_qkv",
}
# Norms with a tensor per head.
_OF_A_HEAD = re.compile(r"\.norms\.(\d+)(?=\.)")


@dataclass(frozen=True)
class RuntimeTensor:
    """One tensor of the file.

    Attributes:
        name: Its name there.
        shape: Axes in transformers' order, which GGUF writes backwards.
        kind: Type there: ``F32``, ``F16``, ``BF16`` or ``Q8_0``.
        steps: Steps that it is made of, joined along the first axis.
        turned: Features per head whose rotary halves become neighbours; 0 for none.
        offset: Number added to each element.
        values: The numbers themselves, for a tensor that no step gives.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    steps: tuple[Step, ...]
    turned: int = 0
    offset: float = 0.0
    values: tuple[float, ...] = ()

    @property
    def nbytes(self) -> int:
        gguf = load_gguf()
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.kind]]
        count: int = math.prod(self.shape) // block * size
        return count


def sizes(config: dict[str, Any], plan: Plan) -> list[dict[str, int]]:
    """Return the numbers that the names in a `Shape` mean in each layer."""
    numbers = {}
    for word, key in (("vocab", "vocab_size"), ("width", "hidden_size"), ("inner", "intermediate_size")):
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise FamilyError(f"config.json: {key} must be a whole number of at least 1, found {value!r}")
        numbers[word] = value
    return [
        {
            **numbers,
            "head": block.target.head_dim,
            "query": block.target.head_dim * block.target.num_attention_heads,
            "key": block.target.head_dim * block.target.num_key_heads,
        }
        for block in plan.blocks
    ]


def make_tensors(
    model: SourceModel,
    family: RuntimeFamily,
    config: dict[str, Any],
    plan: Plan,
    steps: Steps,
    dtype: str | None,
) -> tuple[RuntimeTensor, ...]:
    """Make every tensor of the file from the export's steps; each that llama.cpp expects must be among them.

    Args:
        model: The source.
        family: Record of the architecture in llama.cpp.
        config: The exported model's configuration.
        plan: The export's layouts.
        steps: A step for each tensor of the exported model.
        dtype: A name of `DTYPES` for matrices; None keeps each tensor's.

    Raises:
        NotExpressibleError: llama.cpp has no such tensor.
        FamilyError: One that it expects is missing, or has another shape.
    """
    gguf = load_gguf()
    attention = family_of(config, model.checkpoint.folder).attention[0]
    layers = config_number(config, attention.num_layers)
    architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)
    names = gguf.get_tensor_name_map(architecture, layers)
    made: dict[str, list[Step]] = {}
    for step in steps.steps:
        name = step.name
        if name not in model.family.known_heads():
            name = model.family.prefixes[0] + name.removeprefix(model.prefix)
        found = names.get_name(_OF_A_HEAD.sub("", name), try_suffixes=(".weight", ".bias"))
        if found is None:
            raise NotExpressibleError(
                f"{step.source.file}: llama.cpp's {family.architecture} has no place for {step.name!r}"
            )
        if step.dtype not in FLOATS:
            raise WeightError(
                f"{step.source.file}: {step.name!r} is stored as {step.dtype}, which has no GGUF type; "
                f"export a checkpoint in {', '.join(FLOATS.values())}"
            )
        made.setdefault(found, []).append(step)
    if _is_tied(config, family):
        # transformers may store tied embeddings under the name of the output.
        if "token_embd.weight" not in made and "output.weight" in made:
            made["token_embd.weight"] = made.pop("output.weight")
        if "output.weight" not in made and not family.shares_embeddings:
            made["output.weight"] = made.get("token_embd.weight", [])
    for parts in made.values():
        parts.sort(key=_head_number)  # a source's head may have become several, which follow each other there
    tensors = tuple(
        _tensor(name, tuple(parts), family, attention, plan, dtype) for name, parts in made.items()
    )
    _check_expected(tensors, family, attention, config, plan)
    return tensors


def _head_number(step: Step) -> int:
    found = _OF_A_HEAD.search(step.name)
    return int(found[1]) if found else 0


def _is_tied(config: dict[str, Any], family: RuntimeFamily) -> bool:
    return bool(config.get("tie_word_embeddings", family.is_tied))


def _tensor(
    name: str,
    steps: tuple[Step, ...],
    family: RuntimeFamily,
    attention: Attention,
    plan: Plan,
    dtype: str | None,
) -> RuntimeTensor:
    first = steps[0].shape
    shape = first if len(steps) == 1 else (len(steps), *first)
    is_norm = "norm" in name
    part = name.split(".")[-2]
    turned = plan.blocks[0].target.head_dim if family.is_interleaved and part in ("attn_q", "attn_k") else 0
    kind = "F32"
    # llama.cpp adds and multiplies vectors in float32 only.
    if len(shape) > 1 and not is_norm:
        kind = _KEPT[steps[0].dtype] if dtype is None else DTYPES[dtype]
        if kind == "Q8_0" and shape[-1] % 32:
            kind = "F16"  # blocks of 32 do not fill its rows
    offset = attention.gain_offset if is_norm and name.endswith(".weight") else 0.0
    return RuntimeTensor(name, shape, kind, steps, turned, offset)


def _find_biases(family: RuntimeFamily, attention: Attention, config: dict[str, Any]) -> set[str]:
    """Return the tensors that have a bias in llama.cpp."""
    on = {
        name
        for biases in family.biases
        if biases.key is None or bool(config.get(biases.key, biases.default))
        for name in biases.tensors
    }
    for projection in attention.projections:
        can_have = projection.bias != NEVER
        if family.attention_biases == "stored":
            can_have = has_bias(config, projection.bias)
        if can_have and family.attention_biases != "none":
            on.add(_PROJECTIONS[projection.roles])
    return on


def expected_shapes(
    family: RuntimeFamily, attention: Attention, config: dict[str, Any], plan: Plan
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Return the tensors that llama.cpp reads of a model of this configuration.

    Returns:
        Shapes, in transformers' order of axes, of required tensors and of optional ones.
    """
    table = dict(family.tensors)
    if config.get("use_parallel_residual"):
        table.pop("ffn_norm", None)
    biased = _find_biases(family, attention, config)
    has_norms_by_head = any(norm.span == "per_head" for norm in active_norms(config, attention))
    needed: dict[str, tuple[int, ...]] = {}
    for layer, numbers in enumerate(sizes(config, plan)):
        for name, shape in table.items():
            is_outside = name in ("token_embd", "output", "output_norm")
            if is_outside and layer:
                continue
            full = name if is_outside else f"blk.{layer}.{name}"
            needed[f"{full}.weight"] = _shape(shape, numbers)
            if name in biased:
                needed[f"{full}.bias"] = _shape(shape[:1], numbers)
        if has_norms_by_head:
            for name, word in (("attn_q_norm", "query"), ("attn_k_norm", "key")):
                needed[f"blk.{layer}.{name}.weight"] = (numbers[word] // numbers["head"], numbers["head"])
    optional: dict[str, tuple[int, ...]] = {}
    output = needed.pop("output.weight")
    if family.has_output and not (_is_tied(config, family) and family.shares_embeddings):
        needed["output.weight"] = output
    elif family.has_output:
        optional["output.weight"] = output
    return needed, optional


def _shape(shape: Shape, numbers: dict[str, int]) -> tuple[int, ...]:
    words = {
        **numbers,
        "query+2key": numbers["query"] + 2 * numbers["key"],
        "2inner": 2 * numbers["inner"],
    }
    return tuple(words[word] for word in shape)


def _check_expected(
    tensors: tuple[RuntimeTensor, ...],
    family: RuntimeFamily,
    attention: Attention,
    config: dict[str, Any],
    plan: Plan,
) -> None:
    needed, optional = expected_shapes(family, attention, config, plan)
    found = {tensor.name: tensor for tensor in tensors}
    for name, shape in needed.items():
        if name not in found:
            raise FamilyError(
                f"llama.cpp's {family.architecture} needs {name!r}, which no tensor of the checkpoint gives; "
                "it is incomplete, or has a form that llama.cpp does not know"
            )
        if found[name].shape != shape:
            raise FamilyError(
                f"{found[name].steps[0].name!r} has shape {list(found[name].shape)}, "
                f"the configuration asks for {list(shape)}"
            )
    for name, tensor in found.items():
        if name not in needed and optional.get(name) != tensor.shape:
            raise NotExpressibleError(
                f"{tensor.steps[0].source.file}: llama.cpp's {family.architecture} has no place for "
                f"{tensor.steps[0].name!r} of shape {list(tensor.shape)}"
            )


def tensor_blocks(
    tensor: RuntimeTensor, plan: Plan, reader: TensorReader, merged: MergedBlocks
) -> Iterator[Array]:
    """Compute a tensor's bytes as the file holds them, in order, some rows at a time.

    Raises:
        WeightError: An element is NaN or infinite, or does not fit the type.
    """
    if tensor.values:
        yield np.array(tensor.values, np.float32)
        return
    for step in tensor.steps:
        row = math.prod(step.shape[1:])
        unit = tensor.turned or 1
        row_bytes = row * STORED[step.dtype]().itemsize
        rows = max(1, BLOCK_BYTES // max(1, row_bytes * unit)) * unit
        for stored in _rows(_pieces(step, plan, reader, merged, rows * row_bytes), step, row, rows):
            if tensor.turned:
                stored = interleaved(stored, tensor.turned)
            yield _encode(stored, step, tensor)


def _pieces(
    step: Step, plan: Plan, reader: TensorReader, merged: MergedBlocks, nbytes: int
) -> Iterator[Bytes]:
    if not step.is_copy:
        yield from (data for _, data in step_bytes(step, plan.merge, plan.seed, reader, merged))
        return
    for start in range(0, step.nbytes, nbytes):
        yield reader.read(step.source, start, min(nbytes, step.nbytes - start))


def _rows(pieces: Iterator[Bytes], step: Step, row: int, rows: int) -> Iterator[Array]:
    """Join pieces to blocks of whole rows, ``(rows, row)`` stored elements each but the last."""
    width = row * STORED[step.dtype]().itemsize
    held: list[Bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += piece.nbytes
        if size >= rows * width:
            data = held[0] if len(held) == 1 else np.concatenate(held)
            whole = size // (rows * width) * rows * width
            yield data[:whole].view(STORED[step.dtype]).reshape(-1, row)
            held, size = ([data[whole:]], size - whole) if size > whole else ([], 0)
    if held:
        yield np.concatenate(held).view(STORED[step.dtype]).reshape(-1, row)


def interleaved(rows: Array, head_dim: int) -> Array:
    """Reorder rows of whole heads ``(heads * head_dim, in)`` so that rotary halves become neighbours.

    llama.cpp turns features 2i and 2i + 1 of these architectures, transformers i and i + head_dim / 2.
    """
    halves = rows.reshape(-1, 2, head_dim // 2, rows.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _encode(stored: Array, step: Step, tensor: RuntimeTensor) -> Array:
    """Convert stored elements to the tensor's type."""
    gguf = load_gguf()
    if not is_finite(stored, step.dtype):
        raise WeightError(
            f"{step.source.file}: {step.source.name!r} holds NaN or infinity; use an undamaged checkpoint"
        )
    if tensor.kind == step.dtype and not tensor.offset:
        return stored
    values = decode(stored, step.dtype) if step.dtype == "BF16" else stored.astype(np.float32)
    if tensor.offset:
        values = values + np.float32(tensor.offset)
    with np.errstate(over="ignore"):
        encoded: Array = gguf.quants.quantize(values, gguf.GGMLQuantizationType[tensor.kind])
    overflows = tensor.kind == "F16" and not np.isfinite(encoded).all()
    # Each block of 32 has one float16 scale, the largest magnitude over 127.
    if overflows or (tensor.kind == "Q8_0" and np.abs(values).max() / 127 > np.finfo(np.float16).max):
        raise WeightError(
            f"{step.source.name!r} does not fit {tensor.kind.lower()}: a value overflows; use bf16"
        )
    return encoded
