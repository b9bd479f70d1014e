"""Opening a checkpoint folder: what is found, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gqkva_convert.checkpoint.folder import Checkpoint, open_checkpoint, read_config
from gqkva_convert.errors import CheckpointError

# Two shards' worth of tensors; every size differs.
SHARDS = (
    {
        "wte": torch.arange(35, dtype=torch.float32).reshape(7, 5),
        "h.0.bias": torch.arange(3, dtype=torch.float16),
    },
    {"h.1.weight": torch.arange(8, dtype=torch.bfloat16).reshape(4, 2), "step": torch.tensor(11)},
)
ALL = {name: tensor for shard in SHARDS for name, tensor in shard.items()}
DTYPES = {"wte": "F32", "h.0.bias": "F16", "h.1.weight": "BF16", "step": "I64"}


def save_legacy(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """As PyTorch before 1.6 did: no zip archive."""
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


FORMATS: dict[str, tuple[str, Callable[[dict[str, torch.Tensor], Path], None]]] = {
    "safetensors": ("model.safetensors", save_file),
    "pickle": ("pytorch_model.bin", torch.save),
    "legacy pickle": ("pytorch_model.bin", save_legacy),
}


def write_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 5}')


def write_index(folder: Path, name: str, weight_map: Any) -> None:
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def shard_names(name: str) -> tuple[str, str]:
    stem, ending = name.rsplit(".", 1)
    return f"{stem}-00001-of-00002.{ending}", f"{stem}-00002-of-00002.{ending}"


def write_sharded(folder: Path, kind: str = "safetensors") -> dict[str, str]:
    """A complete sharded checkpoint; returns its map from tensor to file."""
    name, save = FORMATS[kind]
    write_config(folder)
    weight_map = {}
    for file_name, tensors in zip(shard_names(name), SHARDS, strict=True):
        save(tensors, folder / file_name)
        weight_map |= dict.fromkeys(tensors, file_name)
    write_index(folder, name, weight_map)
    return weight_map


def assert_holds_all(checkpoint: Checkpoint) -> None:
    """Names, dtypes, shapes and every byte are those that were saved."""
    assert {name: tensor.dtype for name, tensor in checkpoint.tensors.items()} == DTYPES
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in ALL.items()
    }
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in ALL.values())
    with checkpoint.reader() as reader:
        for name, tensor in ALL.items():
            wanted = tensor.reshape(-1).view(torch.uint8).numpy()
            np.testing.assert_array_equal(reader.read(checkpoint.tensors[name]), wanted)
            np.testing.assert_array_equal(reader.read(checkpoint.tensors[name], 2, 3), wanted[2:5])


@pytest.mark.parametrize("kind", FORMATS)
def test_a_single_file_is_opened(tmp_path: Path, kind: str) -> None:
    """Most models below 5 GB are one file."""
    name, save = FORMATS[kind]
    write_config(tmp_path)
    save(ALL, tmp_path / name)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.folder, checkpoint.files) == (tmp_path, (tmp_path / name,))
    assert checkpoint.config == {"model_type": "llama", "hidden_size": 5}
    assert checkpoint.pickled == (kind != "safetensors")
    assert_holds_all(checkpoint)


@pytest.mark.parametrize("kind", FORMATS)
def test_shards_are_opened_as_one(tmp_path: Path, kind: str) -> None:
    """Larger models come in shards, whose order is the index's."""
    write_sharded(tmp_path, kind)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.files == tuple(tmp_path / name for name in shard_names(FORMATS[kind][0]))
    assert checkpoint.pickled == (kind != "safetensors")
    assert_holds_all(checkpoint)


def test_safetensors_win_over_pickles(tmp_path: Path) -> None:
    """So does transformers load where both lie; the other one may be another model."""
    write_sharded(tmp_path)
    torch.save({"other": torch.ones(6)}, tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path)
    assert not checkpoint.pickled
    assert_holds_all(checkpoint)


def test_a_single_file_wins_over_an_index(tmp_path: Path) -> None:
    """As in transformers; leftovers of an older upload may lie beside it."""
    write_config(tmp_path)
    save_file(ALL, tmp_path / "model.safetensors")
    write_index(tmp_path, "model.safetensors", {"old": "model-00001-of-00003.safetensors"})
    assert_holds_all(open_checkpoint(tmp_path))


@pytest.mark.parametrize("name", ["weights.safetensors", "other.safetensors.index.json"])
def test_a_configuration_names_the_weights(tmp_path: Path, name: str) -> None:
    """Transformers reads that file even where one of the usual name lies beside it."""
    if name.endswith(".index.json"):
        write_index(tmp_path, "other.safetensors", write_sharded(tmp_path))
    else:
        save_file(ALL, tmp_path / name)
    save_file({"old": torch.ones(2)}, tmp_path / "model.safetensors")
    config = {"model_type": "llama", "hidden_size": 5, "transformers_weights": name}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_holds_all(open_checkpoint(tmp_path))
    for wrong in (
        "../weights.safetensors",
        "sub/weights.safetensors",
        "pytorch_model.bin",
        3,
        "gone.safetensors",
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {"transformers_weights": wrong}))
        with pytest.raises(
            CheckpointError, match=r"transformers_weights|gone.safetensors, which config.json"
        ):
            open_checkpoint(tmp_path)


def test_an_index_names_a_missing_shard(tmp_path: Path) -> None:
    """A stopped download is the commonest damage; the message says which file to fetch."""
    write_sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError,
        match=r"index.json names the shard model-00002-of-00002.safetensors, which is missing",
    ):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_the_index_decides_between_equal_copies(tmp_path: Path, kind: str) -> None:
    """Old savers wrote a tied or shared tensor into two shards; it is one tensor."""
    weight_map = write_sharded(tmp_path, kind)
    FORMATS[kind][1]({**SHARDS[1], "wte": SHARDS[0]["wte"].clone()}, tmp_path / weight_map["step"])
    checkpoint = open_checkpoint(tmp_path)
    assert_holds_all(checkpoint)
    assert checkpoint.tensors["wte"].file.name == weight_map["wte"]


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_the_last_copy_is_read_where_the_index_names_it(tmp_path: Path, kind: str) -> None:
    """Transformers loads the last shard's, others follow the index; here both find the same."""
    weight_map = write_sharded(tmp_path, kind)
    _name, save = FORMATS[kind]
    save({**SHARDS[0], "step": torch.tensor(12)}, tmp_path / weight_map["wte"])
    assert_holds_all(open_checkpoint(tmp_path))


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
@pytest.mark.parametrize("other", [torch.ones(7, 5), torch.ones(2, 3), torch.ones(7, 5, dtype=torch.float16)])
def test_different_values_under_one_name_are_refused(tmp_path: Path, kind: str, other: torch.Tensor) -> None:
    """What is checked must be what is loaded, whoever loads it."""
    weight_map = write_sharded(tmp_path, kind)
    FORMATS[kind][1]({**SHARDS[1], "wte": other}, tmp_path / weight_map["step"])
    with pytest.raises(
        CheckpointError,
        match=r"'wte' is stored twice with different values: the index names \w+-00001-of-00002.\w+, "
        r"transformers loads it from \w+-00002-of-00002.\w+",
    ):
        open_checkpoint(tmp_path)


def test_an_index_that_names_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    """JSON readers keep the last of two entries in silence; we do not guess."""
    first, second = shard_names("model.safetensors")
    write_sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(
        f'{{"weight_map": {{"wte": "{first}", "step": "{second}", "wte": "{second}"}}}}'
    )
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json names 'wte' twice"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("metadata", [{}, {"metadata": None}, {"metadata": 0.5}, {"metadata": "x"}])
def test_an_index_without_metadata_is_refused(tmp_path: Path, metadata: dict[str, Any]) -> None:
    """Transformers looks the map up and writes into it; a folder that it does not load is refused."""
    index = {"weight_map": write_sharded(tmp_path), **metadata}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r'index.json has no map "metadata"'):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
@pytest.mark.parametrize(
    "outside", ["../x.safetensors", "/x.safetensors", "sub/x.safetensors", "..", ".", "", "x/"]
)
def test_a_shard_outside_the_folder_is_refused(tmp_path: Path, kind: str, outside: str) -> None:
    """An index from the Hub must not make us read, or name to others, a file of the reader's own."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder, folder / "sub"):
        save_file({"secret": torch.ones(9)}, place / "x.safetensors")
    write_index(folder, FORMATS[kind][0], {**write_sharded(folder, kind), "secret": outside})
    with pytest.raises(CheckpointError, match="lies outside the folder") as refusal:
        open_checkpoint(folder)
    assert repr(outside) in str(refusal.value)


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_a_tensor_that_the_index_omits_is_read(tmp_path: Path, kind: str) -> None:
    """Transformers reads shards whole, whatever the index lists of them."""
    weight_map = write_sharded(tmp_path, kind)
    del weight_map["h.0.bias"]
    write_index(tmp_path, FORMATS[kind][0], weight_map)
    assert_holds_all(open_checkpoint(tmp_path))


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_a_tensor_that_no_shard_holds_is_noted(tmp_path: Path, kind: str) -> None:
    """It may be a tied copy, as the family's table tells, or of another upload."""
    weight_map = write_sharded(tmp_path, kind)
    write_index(tmp_path, FORMATS[kind][0], {**weight_map, "h.2.weight": weight_map["step"]})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.absent == {"h.2.weight": weight_map["step"]}
    assert_holds_all(checkpoint)


def test_a_tensor_in_another_shard_than_the_index_says_is_refused(tmp_path: Path) -> None:
    """Index and shards are of two uploads; nothing says that the weights belong together."""
    weight_map = write_sharded(tmp_path)
    write_index(tmp_path, "model.safetensors", {**weight_map, "wte": weight_map["step"]})
    with pytest.raises(
        CheckpointError,
        match=r"puts 'wte' in model-00002-of-00002.safetensors, it lies in model-00001-of-00002.safetensors",
    ):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("index", ["[]", "{}", "null", '{"weight_map": []}', '{"weight_map": {"a": 3}}'])
def test_an_index_without_a_map_is_refused(tmp_path: Path, index: str) -> None:
    """The file is there and JSON, and still no index."""
    write_config(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json has no weight_map"):
        open_checkpoint(tmp_path)


def test_an_index_of_nothing_is_refused(tmp_path: Path) -> None:
    """A model without a single weight is damage, not a model."""
    write_config(tmp_path)
    write_index(tmp_path, "model.safetensors", {})
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)


def test_an_index_that_is_not_json_is_refused(tmp_path: Path) -> None:
    """Git LFS leaves a pointer of a few lines where a download was skipped."""
    write_config(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json is a git-lfs pointer"):
        open_checkpoint(tmp_path)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    """The message says what would have done."""
    (tmp_path / "model.safetensors").write_bytes(b"")
    for path in (tmp_path / "gone", tmp_path / "model.safetensors"):
        with pytest.raises(
            CheckpointError, match="is not a folder; give a checkpoint folder or a Hub model id"
        ):
            open_checkpoint(path)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    """Weights alone do not say how many heads they hold."""
    save_file(ALL, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is not a checkpoint: it has no config.json"):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    """The message names the files that were looked for."""
    write_config(tmp_path)
    save_file(ALL, tmp_path / "adapter_model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"holds no weights: none of model.safetensors, pytorch_model.bin or"
    ):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("config", ["[]", "{}", '{"model_type": null}', '{"model_type": 3}', '"llama"'])
def test_a_config_without_a_model_type_is_refused(tmp_path: Path, config: str) -> None:
    """Diffusers and sentence-transformers keep other files under this name."""
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"config.json names no model_type"):
        read_config(tmp_path)


def test_a_config_that_names_a_key_twice_is_refused(tmp_path: Path) -> None:
    """Two head counts in one file are one too many."""
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_heads": 6, "num_heads": 3}')
    with pytest.raises(CheckpointError, match=r"config.json names 'num_heads' twice"):
        read_config(tmp_path)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    """Of thirty shards the reader wants to fetch only the bad one again."""
    weight_map = write_sharded(tmp_path)
    shard = tmp_path / weight_map["step"]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors: the header describes"):
        open_checkpoint(tmp_path)
