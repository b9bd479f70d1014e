"""Every refusal through the command line: one clear line, its exit code, nothing left behind."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from typer.testing import Result

Run = Callable[..., Result]


def refused(result: Result, exit_code: int, *words: str) -> str:
    """Check a refusal: its code, one line on stderr with the words given, nothing on stdout."""
    assert result.exit_code == exit_code, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    assert result.stdout == ""
    return lines[0]


def nothing_left(folder: Path, *expected: str) -> None:
    """No output, scratch folder or lock stands beside the source."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(expected)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gkv", "4"], ["--gkv 4", "6 key/value heads", "[1, 2, 3, 6]"]),
        (["--gkv", "0"], ["--gkv 0"]),
        (["--gkv", "-1"], ["--gkv -1"]),
        (["--gq", "4"], ["--gq 4", "[1, 2, 3, 6]"]),
        (["--gq", "2", "--gkv", "2"], ["4 attention heads", "has 6", "1 x 6, 2 x 3, 3 x 2, 6 x 1"]),
        ([], ["give --gkv, --gq or both"]),
        (
            ["--gkv", "2", "--merge", "median"],
            ["median", "mean, first, norm-weighted, closed-form, closed-form-weights, aligned"],
        ),
        (["--gkv", "2", "--grouping", "best"], ["best", "neighbour, random"]),
        (["--gkv", "2", "--dtype", "int8"], ["int8", "bfloat16"]),
        (["--gkv", "2", "--max-shard-size", "lots"], ["lots", "2GB"]),
    ],
)
def test_impossible_requests_say_what_is_possible(
    options: list[str], words: list[str], llama: Path, gqkva: Run
) -> None:
    """A user who asks for a number that cannot be should not have to look up which can."""
    refused(gqkva("convert", llama, llama.parent / "out", *options), 2, *words)
    nothing_left(llama.parent, "llama")


def test_a_grouped_source_cannot_get_more_key_value_heads(llama: Path, gqkva: Run) -> None:
    """Grouping further is possible, ungrouping is not."""
    assert gqkva("convert", llama, llama.parent / "gqa", "--gkv", "2").exit_code == 0
    line = refused(gqkva("convert", llama.parent / "gqa", llama.parent / "out", "--gkv", "3"), 2)
    assert "2 key/value heads (shared by 6 attention heads); choose one of [1, 2]" in line


def test_a_kind_of_attention_that_the_family_lacks_is_refused(
    tiny: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """`--blocks` must not silently convert nothing."""
    line = refused(gqkva("convert", tiny("t5"), tmp_path / "out", "--gkv", "2", "--blocks", "decoders"), 2)
    assert "t5 has no decoders attention; choose of cross, decoder, encoder" in line
    nothing_left(tmp_path)


def test_what_is_already_grouped_otherwise_is_not_merged_again(
    tiny: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """Merging the heads of a GQKVA model would need the original to be any good."""
    assert gqkva("convert", tiny("gpt2"), tmp_path / "out", "--gq", "2", "--gkv", "3").exit_code == 0
    again = gqkva("convert", tmp_path / "out", tmp_path / "again", "--gkv", "1")
    assert "the source is GQKVA-2.3" in refused(again, 2)


def test_a_folder_without_configuration_is_no_checkpoint(tmp_path: Path, gqkva: Run) -> None:
    """A wrong path is the commonest mistake."""
    (tmp_path / "empty").mkdir()
    refused(gqkva("convert", tmp_path / "empty", tmp_path / "out", "--gkv", "2"), 3, "no config.json")
    refused(gqkva("inspect", tmp_path / "empty"), 3, "no config.json")
    refused(gqkva("convert", tmp_path / "absent", tmp_path / "out", "--gkv", "2"), 3, "is not a folder")
    nothing_left(tmp_path, "empty")


def test_a_configuration_that_is_not_json_is_named(llama: Path, gqkva: Run) -> None:
    """An interrupted download leaves half a file."""
    (llama / "config.json").write_text('{"model_type": "lla')
    refused(gqkva("inspect", llama), 3, "config.json is not JSON")


@pytest.mark.parametrize(
    ("model_type", "words"), [("mamba", "its numbers of layers and heads"), ("my_llama", "llama, ")]
)
def test_an_unknown_family_is_said_why_or_the_known(
    model_type: str, words: str, llama: Path, gqkva: Run
) -> None:
    """A user must see the reason, or whether a near relative is supported."""
    edit_config(llama, model_type=model_type)
    line = refused(gqkva("convert", llama, llama.parent / "out", "--gkv", "2"), 4, f"'{model_type}'")
    assert words in line


@pytest.mark.parametrize(
    ("key", "value"),
    [("sliding_window", 4096), ("attn_logit_softcapping", 50.0), ("num_kv_heads", 2), ("alibi", True)],
)
def test_a_key_that_may_change_attention_is_named(key: str, value: Any, llama: Path, gqkva: Run) -> None:
    """Stock Llama ignores these keys; a model trained with them would be converted wrongly in silence."""
    edit_config(llama, **{key: value})
    refused(gqkva("convert", llama, llama.parent / "out", "--gkv", "2"), 4, key, repr(value))
    edit_config(llama, **{key: None})
    assert gqkva("convert", llama, llama.parent / "out", "--gkv", "2").exit_code == 0


@pytest.mark.parametrize(
    ("key", "value", "code", "words"),
    [
        ("num_hidden_layers", 10**30, 4, ["layers, the weight files hold"]),
        ("architectures", "LlamaForCausalLM", 3, ["architectures is a list of class names"]),
        ("architectures", [3], 3, ["architectures is a list of class names", "[3]"]),
    ],
)
def test_a_configuration_edited_by_hand_is_named(
    key: str, value: Any, code: int, words: list[str], llama: Path, gqkva: Run
) -> None:
    """Not a traceback, and not a loop over more layers than there are atoms."""
    edit_config(llama, **{key: value})
    refused(gqkva("inspect", llama), code, *words)


def test_bert_with_relative_positions_is_refused(
    tiny: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """The table knows the key, but not this value of it."""
    folder = tmp_path / "bert"
    folder.mkdir()
    for path in tiny("bert").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    edit_config(folder, position_embedding_type="relative_key")
    refused(gqkva("inspect", folder), 4, "position_embedding_type", "'relative_key'", "'absolute'")


def test_an_unknown_tensor_stops_before_the_first_byte(llama: Path, gqkva: Run) -> None:
    """A tensor nobody claims may hold heads; dropping or copying it would be a guess."""
    shard = sorted(llama.glob("*.safetensors"))[0]
    tensors = load_file(shard)
    tensors["model.layers.0.self_attn.sinks"] = np.zeros(6, dtype=np.float32)
    save_file(tensors, shard, metadata={"format": "pt"})
    index = llama / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["model.layers.0.self_attn.sinks"] = shard.name
    index.write_text(json.dumps(data))
    refused(
        gqkva("convert", llama, llama.parent / "out", "--gkv", "2"),
        4,
        "model.layers.0.self_attn.sinks",
        "nothing",
    )
    nothing_left(llama.parent, "llama")


def test_a_missing_projection_is_named_with_its_layer(llama: Path, gqkva: Run) -> None:
    """`KeyError: k_proj` would tell a user nothing."""
    name = "model.layers.1.self_attn.k_proj.weight"
    index = llama / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    shard = llama / data["weight_map"].pop(name)
    tensors = load_file(shard)
    del tensors[name]
    save_file(tensors, shard, metadata={"format": "pt"})
    index.write_text(json.dumps(data))
    refused(gqkva("convert", llama, llama.parent / "out", "--gkv", "2"), 4, "layer 1", name)


def test_shapes_that_contradict_the_configuration_are_named(llama: Path, gqkva: Run) -> None:
    """A lost or wrong head_dim is this field's classic mistake."""
    edit_config(llama, head_dim=5)
    refused(gqkva("convert", llama, llama.parent / "out", "--gkv", "2"), 4, "q_proj.weight", "[24, 30]", "30")


def test_a_truncated_shard_is_named(llama: Path, gqkva: Run) -> None:
    """Half a download must not become half a model."""
    shard = sorted(llama.glob("*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size - 100)
    refused(gqkva("convert", llama, llama.parent / "out", "--gkv", "2"), 3, shard.name, "truncated")
    os.truncate(shard, 5)
    refused(gqkva("convert", llama, llama.parent / "out", "--gkv", "2"), 3, shard.name, "too few")
    nothing_left(llama.parent, "llama")


def rewrite_header(shard: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = shard.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    shard.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


@pytest.mark.parametrize("lie", ["overlap", "size", "dtype"])
def test_a_lying_header_is_refused(lie: str, llama: Path, gqkva: Run) -> None:
    """Trusting offsets from a file would mix up tensors."""

    def change(header: dict[str, Any]) -> None:
        names = sorted(
            (name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"]
        )
        entry = header[names[1]]
        if lie == "overlap":
            start, end = entry["data_offsets"]
            entry["data_offsets"] = [start - 4, end - 4]
        elif lie == "size":
            entry["shape"] = [7, *entry["shape"]]
        else:
            entry["dtype"] = "F33"

    shard = sorted(llama.glob("*.safetensors"))[0]
    rewrite_header(shard, change)
    words = {"overlap": "overlaps", "size": "needs", "dtype": "F33"}
    refused(gqkva("convert", llama, llama.parent / "out", "--gkv", "2"), 3, shard.name, words[lie])


@pytest.mark.parametrize("fault", ["missing", "outside", "twice", "elsewhere"])
def test_a_wrong_index_is_refused(fault: str, llama: Path, gqkva: Run) -> None:
    """An index comes from strangers: it may name what is not there, or what is none of its business."""
    index = llama / "model.safetensors.index.json"
    text = index.read_text()
    name, file_name = next(iter(json.loads(text)["weight_map"].items()))
    if fault == "missing":
        (llama / file_name).unlink()
        words = (file_name, "missing")
    elif fault == "outside":
        index.write_text(text.replace(file_name, "../secret.safetensors"))
        words = ("../secret.safetensors", "outside")
    elif fault == "twice":
        index.write_text(text.replace('"weight_map": {', f'"weight_map": {{ "{name}": "{file_name}",'))
        words = (name, "twice")
    else:
        data = json.loads(text)
        other = next(file for file in data["weight_map"].values() if file != file_name)
        data["weight_map"][name] = other
        index.write_text(json.dumps(data))
        words = (name, other)
    refused(gqkva("convert", llama, llama.parent / "out", "--gkv", "2"), 3, *words)
    nothing_left(llama.parent, "llama")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("merge", ["mean", "first", "norm-weighted", "random"])
def test_weights_that_are_not_finite_are_not_merged(bad: float, merge: str, llama: Path, gqkva: Run) -> None:
    """One NaN would spread over a whole group of heads."""
    name = "model.layers.1.self_attn.v_proj.weight"
    shard = llama / json.loads((llama / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(shard)
    tensors[name][3, 2] = bad
    save_file(tensors, shard, metadata={"format": "pt"})
    refused(
        gqkva("convert", llama, llama.parent / "out", "--gkv", "2", "--merge", merge),
        6,
        name,
        "NaN or infinity",
    )
    nothing_left(llama.parent, "llama")


def test_values_too_large_for_the_new_dtype_are_refused(llama: Path, gqkva: Run) -> None:
    """float16 ends at 65504; infinities in a converted model are found only when it answers nonsense."""
    name = "model.layers.0.mlp.up_proj.weight"
    shard = llama / json.loads((llama / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(shard)
    tensors[name][1, 1] = 1e5
    save_file(tensors, shard, metadata={"format": "pt"})
    refused(
        gqkva("convert", llama, llama.parent / "out", "--gkv", "2", "--dtype", "float16"), 6, name, "overflow"
    )
    assert gqkva("convert", llama, llama.parent / "out", "--gkv", "2", "--dtype", "bfloat16").exit_code == 0


def test_a_pickle_with_anything_but_tensors_is_refused(llama: Path, gqkva: Run) -> None:
    """Unpickling can run code; nothing of it runs here."""
    for shard in llama.glob("model*"):
        shard.unlink()
    torch.save({"model.embed_tokens.weight": torch.zeros(2), "hook": Path}, llama / "pytorch_model.bin")
    refused(
        gqkva("convert", llama, llama.parent / "out", "--gkv", "2"),
        3,
        "pytorch_model.bin",
        "more than tensors",
    )
    torch.save({"state_dict": {}}, llama / "pytorch_model.bin")
    refused(gqkva("convert", llama, llama.parent / "out", "--gkv", "2"), 3, "state_dict")


def test_quantised_weights_are_refused_with_the_reason(llama: Path, gqkva: Run) -> None:
    """The mean of two codes is not the code of the mean."""
    edit_config(llama, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(gqkva("convert", llama, llama.parent / "out", "--gkv", "2"), 6, "quantised (gptq)", "original")


def test_eight_bit_floats_are_refused(llama: Path, gqkva: Run) -> None:
    """fp8 checkpoints carry scales beside the weights, which a merge would ignore."""
    name = "model.layers.0.self_attn.k_proj.weight"
    shard = llama / json.loads((llama / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = {key: torch.from_numpy(value) for key, value in load_file(shard).items()}
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    from safetensors.torch import save_file as save_torch

    save_torch(tensors, shard, metadata={"format": "pt"})
    refused(gqkva("convert", llama, llama.parent / "out", "--gkv", "2"), 6, name, "F8_E4M3")


def test_an_existing_folder_is_refused_and_untouched(llama: Path, gqkva: Run) -> None:
    """Yesterday's conversion must survive a repeated command."""
    out = llama.parent / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    refused(gqkva("convert", llama, out, "--gkv", "2"), 7, "already exists", "--overwrite")
    refused(gqkva("convert", llama, out, "--gkv", "2", "--overwrite"), 7, "not a checkpoint folder")
    assert (out / "notes.txt").read_text() == "mine"
    nothing_left(llama.parent, "llama", "out")


def test_the_source_is_never_the_target(llama: Path, gqkva: Run) -> None:
    """--overwrite on the source would destroy the only copy."""
    refused(gqkva("convert", llama, llama, "--gkv", "2", "--overwrite"), 7, "is or holds the source")
    refused(gqkva("convert", llama, llama.parent, "--gkv", "2", "--overwrite"), 7, "is or holds the source")


def test_too_little_space_is_known_before_writing(
    llama: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 70B conversion that fails at the last shard wastes a night."""
    import shutil

    usage = shutil.disk_usage(llama)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    refused(gqkva("convert", llama, llama.parent / "out", "--gkv", "2"), 7, "needs", "are free")
    nothing_left(llama.parent, "llama")


def test_a_read_only_place_is_named(llama: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model stores are often mounted read-only."""
    if os.geteuid() != 0:
        folder = llama.parent / "locked"
        folder.mkdir(mode=0o500)
        refused(gqkva("convert", llama, folder / "out", "--gkv", "2"), 7, "cannot write")
    target = Path("/proc/gqkva-out")  # nobody, not even root, creates files there
    refused(gqkva("convert", llama, target, "--gkv", "2"), 7, "cannot write", str(target))


def test_verify_refuses_a_folder_of_unknown_origin(llama: Path, gqkva: Run) -> None:
    """Without a report there is no plan to prove."""
    refused(gqkva("verify", llama), 9, "gqkva_report.json")


def test_revision_belongs_to_hub_ids(llama: Path, gqkva: Run) -> None:
    """A revision of a local folder would be ignored in silence."""
    refused(gqkva("inspect", llama, "--revision", "main"), 3, "--revision")
