"""Plan a GGUF file, write it, read it back, publish it."""

from __future__ import annotations

import datetime
import importlib.metadata
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gqkva_convert.architectures import FAMILIES
from gqkva_convert.architectures.gguf import RuntimeFamily
from gqkva_convert.checkpoint.digest import file_sha256
from gqkva_convert.checkpoint.dtypes import unknown_dtype
from gqkva_convert.checkpoint.jsonfile import write_json
from gqkva_convert.checkpoint.publish import published_folder, require_space
from gqkva_convert.checkpoint.sidecars import GGUF_REPORT
from gqkva_convert.conversion.export import key_value_counts, prepare_export, require_architecture
from gqkva_convert.conversion.prepare import Conversion
from gqkva_convert.errors import NotExpressibleError, UsageError, VerificationError
from gqkva_convert.plans.plan import Plan
from gqkva_convert.progress import Progress, Stages, byte_stage, no_stages
from gqkva_convert.records.environment import versions
from gqkva_convert.records.report import describe_source
from gqkva_convert.runtimes.gguf.families import RUNTIME_FAMILIES
from gqkva_convert.runtimes.gguf.hyperparameters import (
    Rope,
    add_hyperparameters,
    check_config,
    context_length,
    read_rope,
)
from gqkva_convert.runtimes.gguf.package import load_gguf
from gqkva_convert.runtimes.gguf.tensors import DTYPES, RuntimeTensor, make_tensors, tensor_blocks
from gqkva_convert.runtimes.gguf.tokenizer import read_vocabulary
from gqkva_convert.runtimes.gguf.vocabulary import Vocabulary
from gqkva_convert.source.deci import DECI
from gqkva_convert.source.deci_form import require_deci_form
from gqkva_convert.source.model import SourceModel
from gqkva_convert.source.tensors import source_parameters
from gqkva_convert.steps.merged_blocks import MergedBlocks
from gqkva_convert.transforms.precision import Array

FORMAT_VERSION = 1
# llama.cpp keeps keys and values in float16 unless told otherwise.
_CACHE_BYTES = 2
_ARCHITECTURES = {
    **{name: family.architecture for name, family in FAMILIES.items()},
    DECI: "DeciLMForCausalLM",
}


@dataclass(frozen=True)
class RuntimeExport:
    """A GGUF file ready to be written; plain data, nothing is on disk yet.

    Attributes:
        conversion: The export to a stock architecture, none of whose files is written.
        family: Record of that architecture in llama.cpp.
        config: Its configuration.
        rope: Its rotary positions.
        tensors: The file's tensors, in order.
        vocabulary: Its tokenizer.
        dtype: Type of most matrices, a name of `DTYPES`.
        notes: Warnings for the user.
    """

    conversion: Conversion
    family: RuntimeFamily
    config: dict[str, Any]
    rope: Rope
    tensors: tuple[RuntimeTensor, ...]
    vocabulary: Vocabulary
    dtype: str
    notes: tuple[str, ...]

    @property
    def file_name(self) -> str:
        return f"model-{self.dtype}.gguf"

    @property
    def nbytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def work_bytes(self) -> int:
        """Return the bytes that `write_gguf` reports as progress: written, then read for the checksum."""
        return 2 * self.nbytes

    def to_dict(self) -> dict[str, Any]:
        """Return a description of the file as JSON data."""
        source, plan = self.conversion.model, self.conversion.plan
        return {
            "folder": str(self.conversion.target),
            "file": self.file_name,
            "architecture": self.family.architecture,
            "dtype": self.dtype,
            "tokenizer": {"model": self.vocabulary.model, "pre": self.vocabulary.pre},
            "context_length": context_length(self.family, self.config)[0],
            "key_value_heads": [block.target.num_key_heads for block in plan.blocks],
            "parameters": [
                source_parameters(source),
                self.conversion.parameters,
            ],
            "bytes": [source.checkpoint.nbytes, self.nbytes],
            "kv_cache_bytes_per_token": [
                sum(
                    _CACHE_BYTES * (heads.num_key_heads + heads.num_value_heads) * heads.head_dim
                    for heads in layouts
                )
                for layouts in zip(*((block.source, block.target) for block in plan.blocks), strict=True)
            ],
            "notes": list(self.notes),
        }


def prepare_gguf(
    model: str | Path, out: str | Path, *, architecture: str | None = None, dtype: str | None = None
) -> RuntimeExport:
    """Plan a GGUF file without writing anything.

    Args:
        model: Folder written by `convert`, any checkpoint, or a Hub id.
        out: Folder to write.
        architecture: ``"deci"``, or None for `deci` where the layers of a Llama differ in key/value heads.
        dtype: A name of `DTYPES`; None keeps each matrix's.

    Raises:
        NotExpressibleError: llama.cpp cannot hold the model or its tokenizer; says why.
        GqkvaError: With a message for the user.
    """
    load_gguf()
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(unknown_dtype(dtype, DTYPES, " in a GGUF file of ours"))
    if architecture is not None:
        require_architecture(architecture)
    notes: list[str] = []

    def choose(source: SourceModel) -> str | None:
        _require_known(source)
        return architecture or _architecture(source, notes)

    conversion = prepare_export(model, out, architecture=choose)
    source, plan = conversion.model, conversion.plan
    config = conversion.config
    model_type = config["model_type"]
    family = _family(model_type, config, plan)
    names = config.get("architectures") or [_ARCHITECTURES[model_type]]
    if names != [_ARCHITECTURES[model_type]]:
        raise NotExpressibleError(
            f"{source.checkpoint.folder} holds a {', '.join(names)}; --runtime gguf writes language models, "
            f"{_ARCHITECTURES[model_type]} here"
        )
    check_config(family, config)
    rope = read_rope(source, family, config)
    tensors = make_tensors(source, family, config, plan, conversion.steps, dtype)
    if rope.factors:
        divisors = RuntimeTensor("rope_freqs.weight", (len(rope.factors),), "F32", (), values=rope.factors)
        tensors = (*tensors, divisors)
    vocabulary = read_vocabulary(conversion.located.folder, config, source.checkpoint.files)
    _, window = context_length(family, config)
    if window is not None:
        notes.append(
            f"the context ends at sliding_window {window}: within it llama.cpp attends as the model does"
        )
    embeddings = next(tensor for tensor in tensors if tensor.name == "token_embd.weight").kind
    kept = sum(len(tensor.shape) > 1 and tensor.kind == "F16" for tensor in tensors) if dtype == "q8_0" else 0
    if kept:
        notes.append(f"{kept} matrices stay f16, since their rows are no multiples of 32")
    found = dtype or next(name for name, kind in DTYPES.items() if kind == embeddings)
    return RuntimeExport(
        conversion, family, config, rope, tensors, vocabulary, found, (*notes, *vocabulary.notes)
    )


def _family(model_type: str, config: dict[str, Any], plan: Plan) -> RuntimeFamily:
    """Return llama.cpp's record of a model, by its family and the width of its heads together."""
    family = RUNTIME_FAMILIES[model_type]
    target = plan.blocks[0].target
    query = target.num_attention_heads * target.head_dim
    if family.has_own_width or query == config.get("hidden_size"):
        return family
    if family.instead is None:
        raise NotExpressibleError(
            f"{target.num_attention_heads} heads of {target.head_dim} features are {query} wide, llama.cpp's "
            f"{family.architecture} takes hidden_size {config.get('hidden_size')} alone; choose equal groups"
        )
    return family.instead


def _require_known(source: SourceModel) -> None:
    if source.family.model_type not in RUNTIME_FAMILIES:
        raise NotExpressibleError(
            f"{source.checkpoint.folder}: --runtime gguf does not write {source.family.model_type} models; "
            f"it writes {', '.join(sorted(RUNTIME_FAMILIES))}"
        )


def _architecture(source: SourceModel, notes: list[str]) -> str | None:
    """Choose DeciLM where layers keep different numbers of key/value heads, which saves cache there alone."""
    if len(set(key_value_counts(source))) == 1:
        return None
    try:
        require_deci_form(source.config, source.family.model_type)
    except NotExpressibleError as error:
        reason = str(error).rpartition("; ")[0]
        notes.append(f"layers get copies of key/value heads to have as many as each other: {reason}")
        return None
    return DECI


class _Stream:
    """Blocks of a tensor in the place of an array, as `GGUFWriter.write_tensor_data` writes one."""

    def __init__(self, nbytes: int, blocks: Iterable[Array], progress: Progress) -> None:
        self.nbytes = nbytes
        self._blocks = blocks
        self._progress = progress

    def tofile(self, file: BinaryIO) -> None:
        written = 0
        for block in self._blocks:
            written += file.write(block.reshape(-1).view(np.uint8).data)
            self._progress(block.nbytes)
        assert written == self.nbytes, f"{written} bytes of {self.nbytes}"


def write_gguf(
    export: RuntimeExport,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    stages: Stages = no_stages,
) -> None:
    """Write a prepared file, check it, and publish its folder.

    Memory is a few rows of a tensor, whatever the model's size. An error or an interrupt leaves nothing.
    ``progress`` is called with the number of bytes just written or read again, `work_bytes` in all.

    Raises:
        WeightError: A weight is not finite, or does not fit the dtype.
        OutputError: The folder cannot be written.
        VerificationError: What was written reads back as something else.
    """
    started = time.perf_counter()
    conversion = export.conversion
    with published_folder(conversion.target, overwrite=overwrite) as folder:
        for path in folder.iterdir():  # left by a run that was killed
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        require_space(folder, conversion.target, export.nbytes)
        path = folder / export.file_name
        named = conversion.target / export.file_name
        advance = byte_stage(stages, f"writing {named}", export.work_bytes, progress)
        _write_file(export, path, advance)
        check_file(path, export)
        sha256 = file_sha256(path, advance)
        report = _report(export, path.stat().st_size, sha256, time.perf_counter() - started)
        write_json(folder / GGUF_REPORT, report)


def _write_file(export: RuntimeExport, path: Path, progress: Progress) -> None:
    gguf = load_gguf()
    conversion = export.conversion
    writer = gguf.GGUFWriter(path, export.family.architecture)
    writer.add_type("model")
    writer.add_name(conversion.located.folder.resolve().name)
    writer.add_file_type(_FILE_TYPES[export.dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_hyperparameters(writer, export.family, export.config, conversion.plan, export.rope)
    export.vocabulary.add_to(writer)
    for tensor in export.tensors:
        kind = gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(tensor.name, tensor.shape, "float32", tensor.nbytes, kind)
    checkpoint = conversion.model.checkpoint
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with checkpoint.reader() as reader, MergedBlocks(reader) as merged:
            for tensor in export.tensors:
                blocks = tensor_blocks(tensor, conversion.plan, reader, merged)
                writer.write_tensor_data(_Stream(tensor.nbytes, blocks, progress))
    finally:
        writer.close()


# llama.cpp's ``llama_ftype``: the type of most matrices.
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}


def check_file(path: Path, export: RuntimeExport) -> None:
    """Read a file back and compare it with the export: names, shapes, types and places of tensors, tokens.

    Extra or missing bytes would show in a tensor's place.

    Raises:
        VerificationError: It differs.
    """
    gguf = load_gguf()
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise VerificationError(f"what was written does not open: {error}") from error
    found = {
        tensor.name: (tuple(int(size) for size in reversed(tensor.shape)), tensor.tensor_type.name)
        for tensor in reader.tensors
    }
    expected = {tensor.name: (tensor.shape, tensor.kind) for tensor in export.tensors}
    if found != expected:
        name = min(found.items() ^ expected.items())[0]
        raise VerificationError(
            f"{path}: {name!r} should be {expected.get(name, 'absent')}, is {found.get(name, 'absent')}"
        )
    end = max(tensor.data_offset + tensor.n_bytes for tensor in reader.tensors)
    size = path.stat().st_size
    if not end <= size < end + gguf.GGUF_DEFAULT_ALIGNMENT:
        raise VerificationError(f"{path}: tensors end at byte {end}, the file has {size}")
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    tokens = reader.fields.get(gguf.Keys.Tokenizer.LIST)
    if architecture != export.family.architecture:
        raise VerificationError(
            f"{path}: architecture {architecture!r} in place of {export.family.architecture}"
        )
    if (len(tokens.data) if tokens else 0) != len(export.vocabulary.tokens):
        raise VerificationError(f"{path}: not the {len(export.vocabulary.tokens)} tokens of the tokenizer")


def _report(export: RuntimeExport, size: int, sha256: str, seconds: float) -> dict[str, Any]:
    """Return the report: the file's origin and contents."""
    conversion = export.conversion
    facts = export.to_dict()
    return {
        "format_version": FORMAT_VERSION,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {**versions(), "gguf": importlib.metadata.version("gguf")},
        "source": describe_source(
            conversion.located, conversion.model.checkpoint, facts["parameters"][0]
        ).to_dict(),
        "plan": conversion.plan.to_dict(),
        **{name: facts[name] for name in facts if name not in ("folder", "file")},
        "files": {export.file_name: {"bytes": size, "sha256": sha256}},
        "seconds": round(seconds, 3),
    }
