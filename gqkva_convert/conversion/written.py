"""The checks of `verify` of what stands beside the weights: tokenizer, processors, modules, stray files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.adapters import ADAPTER_CONFIG
from gqkva_convert.checkpoint.folder import PICKLED, SAFETENSORS
from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.checkpoint.modules import MODULES, read_modules
from gqkva_convert.checkpoint.sidecars import module_weights
from gqkva_convert.conversion.proof import Proof
from gqkva_convert.data.processors import load_processor
from gqkva_convert.errors import CheckpointError, DataError, first_line
from gqkva_convert.modeling.log_levels import quiet_transformers
from gqkva_convert.source.model import SourceModel

# Largest difference of an embedding's feature, relative to the largest feature: as of logits.
_TOLERANCE = 1e-4
# Words, other scripts, spaces and digits: what tokenizers of two classes cut differently.
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  Two  spaces,\tCAPITALS and déjà vu; 1234567 + 8.9\n",
    "東京 Москва 🙂 naïve_snake_case()",
)
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_GENERATION = "generation_config.json"
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
# What sentence-transformers calls kinds of models that encode texts, by the name of their class.
_ENCODERS = ("SentenceTransformer", "SparseEncoder")


def auto_class(model: SourceModel) -> tuple[str, Any]:
    """Return the Auto class that users of a folder load it with, and its name; else the class it names."""
    import transformers

    from gqkva_convert.modeling.classes import class_named

    family = model.family
    stored = model.classes[0]
    for auto, names in family.auto_classes.items():
        if stored in names and hasattr(transformers, auto):
            return auto, getattr(transformers, auto)
    named = (model.config.get("architectures") or [family.architecture])[0]
    return named, class_named(named, family.architecture)


def add_files_beside(folder: Path, excerpt: Path) -> None:
    """Link everything but weights and configuration into an excerpt of the folder."""
    own = {name + end for name in (SAFETENSORS, PICKLED) for end in ("", ".index.json")} | {ADAPTER_CONFIG}
    for path in folder.resolve().iterdir():
        is_weights = path.is_file() and path.suffix in (".safetensors", ".bin")
        if path.name not in own and not is_weights and not (excerpt / path.name).exists():
            (excerpt / path.name).symlink_to(path)


def check_files_beside(proof: Proof, model: SourceModel, source: Path | None) -> None:
    """Check that no stray adapter is loaded, and that tokenizer and processors load and give what they did.

    Args:
        proof: Gets what was found.
        model: The output.
        source: The source's folder, whose tokenizer and processors must give the same; None to load only.
    """
    folder = model.checkpoint.folder
    if (folder / ADAPTER_CONFIG).exists():
        proof.add(
            "adapter", f"transformers would load the adapter that {ADAPTER_CONFIG} names; remove it", ""
        )
    if (folder / _GENERATION).exists():
        try:
            read_json(folder / _GENERATION)
        except CheckpointError as error:  # transformers passes over a damaged one in silence
            proof.add("generation settings", str(error), "")
    inputs = model.family.inputs
    kinds: list[tuple[str, str, tuple[str, ...], Callable[[Any], Any]]] = [
        ("tokenizer", "AutoTokenizer", _TOKENIZER_FILES, _ids)
    ]
    if inputs.image_processor:
        kinds.append(("image processor", "AutoImageProcessor", _PROCESSOR_FILES, _settings))
    if inputs.feature_extractor:
        kinds.append(("feature extractor", "AutoFeatureExtractor", _PROCESSOR_FILES, _settings))
    for name, auto, files, answer in kinds:
        places = [folder] if source is None else [folder, source]
        has = [any((place / file).is_file() for file in files) for place in places]
        if has == [False, True]:
            proof.add(name, f"the source has one, {folder} has none", "")
        elif has[0]:
            _check_alike(proof, name, auto, places if all(has) else [folder], answer, model)


def _check_alike(
    proof: Proof,
    name: str,
    auto: str,
    places: list[Path],
    answer: Callable[[Any], Any],
    model: SourceModel,
) -> None:
    """Load the output's, and the source's where there is one, and compare what they give."""
    quiet_transformers()
    found = [_load(place, auto, answer) for place in places]
    absent = next((reader.fault for reader in found if reader.is_without_package), None)
    ours, theirs = found[0], found[-1] if len(found) > 1 else None
    if absent is not None:
        proof.add(name, None, f"not checked: {absent}")
    elif ours.fault is not None:
        is_new = theirs is None or theirs.fault is None
        proof.add(name, ours.fault if is_new else None, f"loads neither here nor in the source: {ours.fault}")
    elif theirs is not None and ours.given != theirs.given:
        proof.add(name, f"gives something else than the source's ({ours.kind} here, {theirs.kind} there)", "")
    else:
        compared = "loads; without the source it is compared with nothing"
        failure = _beyond_embeddings(ours.given, model) if auto == "AutoTokenizer" else None
        proof.add(name, failure, f"{ours.kind}, {'gives what the source gives' if theirs else compared}")


@dataclass(frozen=True)
class _Reader:
    """A tokenizer or processor: its class and what it gives, or why it does not load."""

    kind: str = ""
    given: Any = None
    fault: str | None = None
    is_without_package: bool = False


def _load(folder: Path, auto: str, answer: Callable[[Any], Any]) -> _Reader:
    try:
        reader = load_processor(folder, auto)
        return _Reader(type(reader).__name__, answer(reader))
    except DataError as error:
        cause = error.__cause__
        if isinstance(cause, ImportError):
            return _Reader(fault=first_line(cause), is_without_package=True)
        return _Reader(fault=f"{error}: {first_line(cause or error)}")
    except Exception as error:  # whatever a tokenizer raises for a text
        return _Reader(fault=f"{folder}: {type(error).__name__}: {first_line(error)}")


def _ids(tokenizer: Any) -> tuple[Any, ...]:
    """Return what a tokenizer makes of texts, and its special tokens and chat template."""
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    back = [tokenizer.decode(row) for row in ids]
    special = {key: str(token) for key, token in tokenizer.special_tokens_map.items()}
    return ids, back, special, tokenizer.padding_side, getattr(tokenizer, "chat_template", None)


def _settings(processor: Any) -> Any:
    return json.loads(json.dumps(processor.to_dict(), default=str))


def _beyond_embeddings(given: tuple[Any, ...], model: SourceModel) -> str | None:
    text = model.config.get("text_config")
    size = (text if isinstance(text, dict) else model.config).get("vocab_size")
    largest = max((number for row in given[0] for number in row), default=0)
    if not isinstance(size, int) or largest < size:
        return None
    return f"gives the token {largest}, the model has {size}"


def check_modules(
    proof: Proof, folder: Path, written: Path, expanded: Path, beside: Path | None, which: str
) -> None:
    """Check that a sentence-transformers model embeds texts as the plan applied in memory does.

    Args:
        proof: Gets what was found.
        folder: The output.
        written: The folder to load: the output, or an excerpt with its files.
        expanded: The plan applied in memory, as a checkpoint; gets tokenizer and modules.
        beside: Folder with the source's tokenizer and modules; None for the output's own.
        which: Layers that both have.
    """
    name = "sentence-transformers"
    if not (folder / MODULES).is_file():
        if beside is not None and (beside / MODULES).is_file():
            proof.add(name, f"the source has {MODULES}, {folder} has none", "")
        return
    kind = _kind(folder)
    if kind not in _ENCODERS:
        proof.add(name, None, f"not checked: a {kind} is not run here")
        return
    try:
        import sentence_transformers
    except ImportError:
        proof.add(name, None, "not checked: sentence-transformers is not installed (pip install it)")
        return
    encoder = getattr(sentence_transformers, kind)
    add_files_beside(beside or folder, expanded)
    try:
        ours, reference = (_embed(encoder, place) for place in (written, expanded))
    except Exception as error:  # whatever sentence-transformers raises for modules it cannot load or run
        proof.add(name, f"{type(error).__name__}: {first_line(error)}", "")
        return
    kinds = ", ".join(module.kind for module in read_modules(folder))
    if ours.shape != reference.shape:
        proof.add(name, f"embeddings of {ours.shape[-1]} features, should be {reference.shape[-1]}", "")
        return
    difference = float((ours - reference).abs().max()) / max(float(reference.abs().max()), 1e-30)
    whose = "the folder's own files" if beside is None else "the source's tokenizer and modules"
    proof.add(
        name,
        None if difference <= _TOLERANCE else f"embeddings differ by {difference:.1e} of the largest",
        f"{kinds}; embeddings within {difference:.1e} of the plan applied in memory with {whose} ({which})",
    )


def _kind(folder: Path) -> str:
    path = folder / "config_sentence_transformers.json"
    data = read_json(path) if path.is_file() else {}
    stated = data.get("model_type") if isinstance(data, dict) else None
    return str(stated or "SentenceTransformer")


def _embed(encoder: Any, folder: Path) -> Any:
    """Return embeddings of `TEXTS`, in float32; runs no code of the folder."""
    import torch

    require_safe_weights(folder)
    model = encoder(str(folder), device="cpu", trust_remote_code=False, local_files_only=True).float()
    with torch.inference_mode():
        made = model.encode(list(TEXTS), convert_to_tensor=True, show_progress_bar=False)
    return made.to_dense() if made.layout != torch.strided else made


def require_safe_weights(folder: Path) -> None:
    """Refuse modules whose pickled weights hold more than tensors, before another program loads them.

    Raises:
        CheckpointError: One does.
    """
    from gqkva_convert.checkpoint.pickled import list_tensors

    for path in module_weights(folder).values():
        if path.suffix == ".bin":
            list_tensors(path)
