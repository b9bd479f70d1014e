"""Checkpoint folders as people have them: read as transformers reads them, or refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast
from typer.testing import Result

Run = Callable[..., Result]
Change = Callable[[dict[str, torch.Tensor]], Any]

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 13476839424\n"
PAGE = "<!DOCTYPE html><html><body>404</body></html>"
GREETINGS = {"tokenizer.json": '{"version": "1.0"}', "chat_template.jinja": "{{ messages }}"}


def refused(result: Result, exit_code: int, *words: str) -> None:
    """Check a refusal: its code, and one line that holds the words."""
    assert result.exit_code == exit_code, (result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert all(word in lines[0] for word in words), lines[0]


def changed(folder: Path, change: Change, *, pickled: bool = False) -> Path:
    """Change the tensors of a single-file checkpoint in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    (folder / "model.safetensors").unlink()
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def copy(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a family's tiny checkpoint, free to be damaged."""
    return lambda model_type: shutil.copytree(tiny(model_type), tmp_path / model_type)


SIZES: dict[str, tuple[str, Change, str]] = {
    "empty": (
        "llama",
        lambda t: t.update({"model.embed_tokens.weight": torch.empty(0)}),
        "'model.embed_tokens.weight' has the shape [0], by config.json LlamaForCausalLM takes [37, 30]; it "
        "was saved while its values lay in other processes",
    ),
    "norm": ("llama", lambda t: t.update({"model.norm.weight": torch.ones(31)}), "[31]"),
    "missing": (
        "llama",
        lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
        "layers.1.mlp.up_proj.weight' is",
    ),
    "positions": (
        "bert",
        lambda t: t.update({"bert.embeddings.position_embeddings.weight": torch.ones(19, 30)}),
        "position_embeddings.weight' has the shape [19, 30]",
    ),
    "fc": (
        "gpt2",
        lambda t: t.update({"transformer.h.1.mlp.c_fc.weight": torch.ones(30, 30)}),
        "takes [30, 120]",
    ),
}


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("kind", SIZES)
def test_tensors_of_the_wrong_size_stop_every_command(
    kind: str, pickled: bool, copy: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """Those that are only copied, too: the result would not load, and the source does not either."""
    model_type, change, words = SIZES[kind]
    folder = changed(copy(model_type), change, pickled=pickled)
    out, data = tmp_path / "out", tmp_path / "data.txt"
    data.write_text("a bee sees\n" * 50)
    file = "pytorch_model.bin" if pickled else "model.safetensors"
    for arguments in (
        ("convert", folder, out, "--gkv", 2),
        ("convert", folder, out, "--gkv", 2, "--merge", "mean", "--dry-run"),
        ("plan", folder, "--gkv", 2, "--out", tmp_path / "plan.json"),
        ("export", folder, out),
        ("evaluate", folder, "--data", data),
        ("uptrain", folder, out, "--data", data, "--tokens", 64, "--any-model"),
    ):
        refused(gqkva(*arguments), 3, words, *([file] if kind != "missing" else []))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([model_type, "data.txt"])


STAND_INS = {
    "model.safetensors": POINTER,
    "config.json": POINTER,
    "tokenizer.json": POINTER,
    "tokenizer.model": POINTER,
    "vocab.txt": "",
    "generation_config.json": PAGE,
    "chat_template.jinja": PAGE,
    "modules.json": "",
    "1_Pooling/config.json": '{"error": "Invalid username or password."}',
}


@pytest.mark.parametrize("name", STAND_INS)
def test_a_failed_download_is_named_by_every_command(
    name: str, copy: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """Copied into a result, a pointer in place of the tokenizer would be found only when it is used."""
    folder = copy("llama")
    assert gqkva("convert", folder, tmp_path / "converted", "--gkv", 2).exit_code == 0
    text = STAND_INS[name]
    said = {POINTER: "is a git-lfs pointer of 13.48 GB", PAGE: "is a web page", "": "is empty"}
    for place in (folder, tmp_path / "converted"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    data = tmp_path / "data.txt"
    data.write_text("a bee sees\n" * 50)
    for arguments in (
        ("convert", folder, tmp_path / "out", "--gkv", 2),
        ("inspect", folder),
        ("evaluate", folder, "--data", data),
        ("export", tmp_path / "converted", tmp_path / "out"),
        ("uptrain", tmp_path / "converted", tmp_path / "out", "--data", data, "--tokens", 64),
        ("push", tmp_path / "converted", "someone/model", "--dry-run", "--unverified"),
    ):
        refused(gqkva(*arguments), 3, name, said.get(text, "error message"))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_links_is_one_model(copy: Callable[[str], Path], tmp_path: Path, gqkva: Run) -> None:
    """`ln -s` of a whole checkpoint converts as that checkpoint does: nothing stays behind."""
    base = copy("llama")
    for name, text in GREETINGS.items():
        (base / name).write_text(text)
    farm = tmp_path / "farm"
    farm.mkdir()
    for path in base.iterdir():
        (farm / path.name).symlink_to(path)
    for source, out in ((base, tmp_path / "one"), (farm, tmp_path / "two")):
        assert gqkva("convert", source, out, "--gkv", 2).exit_code == 0
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert names == sorted(
        [*GREETINGS, "config.json", "generation_config.json", "gqkva_report.json", "model.safetensors"]
    )
    assert not any(path.is_symlink() for path in (tmp_path / "two").iterdir())


def test_training_copies_no_private_file(copy: Callable[[str], Path], tmp_path: Path, gqkva: Run) -> None:
    """Its result holds the files of the folder that it began with, as a conversion does."""
    folder = copy("llama")
    (tmp_path / "id_rsa").write_text("secret")
    for name in ("1_Pooling/config.json", "notes.txt", "tokenizer_config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(tmp_path / "id_rsa")
        result = gqkva("uptrain", folder, tmp_path / "out", "--data", "x.txt", "--tokens", 64, "--any-model")
        assert result.exit_code == 3, result.output
        assert name in result.stderr
        (folder / name).unlink()


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "1_Pooling/config.json", "LICENSE"])
@pytest.mark.parametrize("weights", ["here", "linked"])
def test_a_link_to_a_private_file_is_never_copied(
    name: str, weights: str, copy: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """An archive may hold links to keys of whoever unpacks it, and results are uploaded."""
    folder = copy("llama")
    secret = tmp_path / "home" / "id_rsa"
    secret.parent.mkdir()
    secret.write_text('{"key": "secret"}')
    if weights == "linked":
        (folder / "model.safetensors").rename(secret.with_name("model.safetensors"))
        (folder / "model.safetensors").symlink_to(secret.with_name("model.safetensors"))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(secret)
    data = tmp_path / "data.txt"
    data.write_text("a bee sees\n" * 50)
    for arguments in (
        ("convert", folder, tmp_path / "out", "--gkv", 2),
        ("export", folder, tmp_path / "out"),
        ("uptrain", folder, tmp_path / "out", "--data", data, "--tokens", 64, "--any-model"),
    ):
        refused(gqkva(*arguments), 3, f"{name} is a link to {secret}", "cp ")
    assert not (tmp_path / "out").exists()
    assert gqkva("inspect", folder).exit_code == 0


@pytest.fixture
def sharded(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, str]]]:
    """A tiny Llama in shards of either format, and its index's map."""

    def make(*, pickled: bool = False, **changes: Any) -> tuple[Path, dict[str, str]]:
        model = tiny_models.build("llama", "LlamaForCausalLM", **changes)
        folder = tiny_models.save(model, tmp_path / "sharded", max_shard_size="14KB")
        index = folder / "model.safetensors.index.json"
        weight_map = json.loads(index.read_text())["weight_map"]
        if pickled:
            for name in set(weight_map.values()):
                torch.save(load_file(folder / name), folder / name.replace("safetensors", "bin"))
                (folder / name).unlink()
            index.unlink()
            weight_map = {name: file.replace("safetensors", "bin") for name, file in weight_map.items()}
        write_index(folder, weight_map)
        return folder, weight_map

    return make


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    stem = "pytorch_model.bin" if next(iter(weight_map.values())).endswith(".bin") else "model.safetensors"
    (folder / f"{stem}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def add_tensor(path: Path, name: str, tensor: torch.Tensor) -> None:
    if path.suffix == ".bin":
        torch.save({**torch.load(path), name: tensor}, path)
    else:
        save_file({**load_file(path), name: tensor}, path, metadata={"format": "pt"})


def stored(path: Path, name: str) -> torch.Tensor:
    tensors = torch.load(path) if path.suffix == ".bin" else load_file(path)
    found: torch.Tensor = tensors[name]
    return found


def converts_as_it_loads(folder: Path, tmp_path: Path, gqkva: Run) -> None:
    """Convert by the tied-heads control's way: one group a head, so that the result must equal the source."""
    result = gqkva("convert", folder, tmp_path / "out", "--gkv", 6, "--max-shard-size", "1GB")
    assert result.exit_code == 0, result.output
    assert gqkva("verify", tmp_path / "out", "--against", folder).exit_code == 0
    expected = tiny_models.outputs(tiny_models.load(folder, "LlamaForCausalLM"))
    found = tiny_models.outputs(tiny_models.load(tmp_path / "out", "LlamaForCausalLM"))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("case", ["tied", "twice", "twice, the last named", "omitted"])
def test_an_index_is_read_as_transformers_reads_it(
    case: str, pickled: bool, sharded: Callable[..., tuple[Path, dict[str, str]]], tmp_path: Path, gqkva: Run
) -> None:
    """It says which shards there are; what they hold is what is loaded."""
    folder, weight_map = sharded(pickled=pickled, tie_word_embeddings=case == "tied")
    first, *_, last = sorted(set(weight_map.values()))
    if case == "tied":
        write_index(folder, {**weight_map, "lm_head.weight": last})
    elif case == "twice":
        name = next(name for name, file in weight_map.items() if file == first)
        add_tensor(folder / last, name, stored(folder / first, name))
    elif case == "twice, the last named":
        name = next(name for name, file in weight_map.items() if file == last)
        add_tensor(folder / first, name, stored(folder / last, name) + 1)
    else:
        write_index(folder, {name: file for name, file in weight_map.items() if name != "model.norm.weight"})
    converts_as_it_loads(folder, tmp_path, gqkva)


@pytest.mark.parametrize("pickled", [False, True])
def test_an_index_that_means_two_models_is_refused(
    pickled: bool, sharded: Callable[..., tuple[Path, dict[str, str]]], tmp_path: Path, gqkva: Run
) -> None:
    """Who follows the index would load other weights than transformers does."""
    folder, weight_map = sharded(pickled=pickled)
    first, *_, last = sorted(set(weight_map.values()))
    name = next(name for name, file in weight_map.items() if file == first)
    add_tensor(folder / last, name, stored(folder / first, name) + 1)
    for command in (
        ("convert", folder, tmp_path / "out", "--gkv", 2),
        ("inspect", folder),
        ("export", folder, "x"),
    ):
        refused(gqkva(*command), 3, "stored twice with different values", first, last)


def test_a_copy_hidden_in_a_verified_folder_is_found(
    sharded: Callable[..., tuple[Path, dict[str, str]]], tmp_path: Path, gqkva: Run
) -> None:
    """What `verify` has proven must be what is pushed and loaded, in whichever shard a name stands."""
    folder, _ = sharded()
    out = tmp_path / "out"
    assert gqkva("convert", folder, out, "--gkv", 2).exit_code == 0
    assert gqkva("verify", out).exit_code == 0
    weight_map = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    first, *_, last = sorted(set(weight_map.values()))
    name = next(name for name, file in weight_map.items() if file == last)
    add_tensor(out / first, name, stored(out / last, name) + 1)
    assert gqkva("verify", out).exit_code == 9
    assert gqkva("push", out, "someone/model", "--dry-run").exit_code == 9
    add_tensor(out / last, "model.norm.weight", torch.ones(30))
    assert gqkva("verify", out).exit_code in (3, 9)


BUFFERS = {
    "llama": ("model.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.cos_cached"),
    "gpt_neox": ("gpt_neox.rotary_emb.inv_freq", "gpt_neox.layers.1.attention.rotary_emb.sin_cached"),
    "phi": ("model.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq"),
}


@pytest.mark.parametrize("model_type", BUFFERS)
def test_stored_rotary_buffers_are_dropped_with_a_note(
    model_type: str, copy: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """Stock models compute frequencies, sines and cosines anew, wherever old versions kept them."""
    folder = changed(
        copy(model_type), lambda t: t.update({name: torch.ones(2) for name in BUFFERS[model_type]})
    )
    result = gqkva("convert", folder, tmp_path / "out", "--gkv", 2, "--dry-run", "--json")
    assert set(json.loads(result.stdout)["dropped"]) == set(BUFFERS[model_type])
    unknown = changed(folder, lambda t: t.update({BUFFERS[model_type][0] + "_of_mine": torch.ones(2)}))
    refused(gqkva("inspect", unknown), 4, "_of_mine")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_flash_attention_2", True),
        ("_flash_attn_2_enabled", True),
        ("use_flash_attn", True),
        ("attn_impl", "flash"),
        ("_attn_implementation", "sdpa"),
        ("_attn_implementation_internal", "eager"),
    ],
)
def test_keys_that_choose_a_kernel_change_nothing(
    key: str, value: Any, copy: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """Every kernel computes the same attention; the key goes along as it is."""
    folder = copy("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    assert gqkva("convert", folder, tmp_path / "out", "--gkv", 2).exit_code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())[key] == value


def test_a_model_trained_from_named_weights_loads(
    copy: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """Training copies the configuration, and writes weights of the usual name."""
    folder = copy("llama")
    vocabulary = {
        "[UNK]": 0,
        "a": 1,
        "bee": 2,
        "sees": 3,
        **{f"w{number}": number for number in range(4, 37)},
    }
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="w36").save_pretrained(
        folder
    )
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "mine.safetensors"}))
    data, out = tmp_path / "data.txt", tmp_path / "out"
    data.write_text("a bee sees\n" * 50)
    result = gqkva("uptrain", folder, out, "--data", data, "--tokens", 64, "--any-model")
    assert result.exit_code == 0, result.output
    assert "transformers_weights" not in json.loads((out / "config.json").read_text())
    tiny_models.load(out, "LlamaForCausalLM")


def test_weights_that_the_configuration_names_are_read(
    copy: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """The result has the usual name, and its configuration no longer says another."""
    folder = copy("llama")
    model = tiny_models.load(folder, "LlamaForCausalLM")
    expected = tiny_models.outputs(model)
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    save_file({"old": torch.ones(3)}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "mine.safetensors"}))
    assert gqkva("convert", folder, tmp_path / "out", "--gkv", 6).exit_code == 0
    assert "transformers_weights" not in json.loads((tmp_path / "out" / "config.json").read_text())
    found = tiny_models.outputs(tiny_models.load(tmp_path / "out", "LlamaForCausalLM"))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "../mine.safetensors"}))
    refused(gqkva("convert", folder, tmp_path / "no", "--gkv", 2), 3, "outside the folder")
