"""What a conversion writes, beside the merged weights."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from typer.testing import Result

from gqkva_convert import convert, verify
from gqkva_convert.checkpoint.folder import PICKLED, open_checkpoint
from gqkva_convert.errors import CheckpointError

Run = Callable[..., Result]


def all_tensors(folder: Path) -> dict[str, bytes]:
    """Every tensor of a folder as bytes with its dtype and shape."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
                found[name] = f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + raw
    return found


@pytest.mark.parametrize("merge", ["mean", "first", "norm-weighted", "random"])
@pytest.mark.parametrize("grouping", ["neighbour", "random"])
def test_the_layout_a_model_already_has_changes_no_byte(
    merge: str, grouping: str, llama: Path, tmp_path: Path
) -> None:
    """Identity is the strongest oracle: nothing may be recomputed that need not be."""
    out = convert(llama, tmp_path / "out", gkv=6, merge=merge, grouping=grouping)
    assert all_tensors(out) == all_tensors(llama)
    assert json.loads((out / "config.json").read_text()) == json.loads((llama / "config.json").read_text())


def test_merged_heads_are_the_mean_of_their_neighbours(llama: Path, tmp_path: Path) -> None:
    """The GQA paper's conversion, against three lines of torch; a tiled grouping would differ."""
    before = tiny_models.load(llama, "LlamaForCausalLM").state_dict()
    after = tiny_models.load(
        convert(llama, tmp_path / "out", gkv=2, merge="mean"), "LlamaForCausalLM"
    ).state_dict()
    for name, tensor in before.items():
        if "k_proj" in name or "v_proj" in name:
            expected = tensor.double().unflatten(0, (2, 3, 4)).mean(1).flatten(0, 1).float()
            torch.testing.assert_close(after[name], expected, rtol=0, atol=0)
        else:
            assert torch.equal(after[name], tensor), name


def test_a_grouped_model_is_grouped_further(llama: Path, tmp_path: Path) -> None:
    """Two steps of averaging equal groups are one."""
    half = convert(llama, tmp_path / "half", gkv=2, merge="mean")
    both = convert(half, tmp_path / "both", gkv=1, merge="mean")
    once = convert(llama, tmp_path / "once", gkv=1, merge="mean")
    assert verify(both, half)["passed"]
    for name, tensor in load_all(once).items():
        np.testing.assert_allclose(load_all(both)[name], tensor, rtol=1e-6, atol=1e-7)


def load_all(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtype_is_kept_unless_asked(dtype: str, llama: Path, tmp_path: Path) -> None:
    """A float32 model on disk that was bfloat16 costs twice the download."""
    cast = convert(llama, tmp_path / "cast", gkv=2, merge="mean", dtype=dtype)
    assert {tensor.dtype for tensor in open_checkpoint(cast).tensors.values()} == {
        {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[dtype]
    }
    assert json.loads((cast / "config.json").read_text())["dtype"] == dtype
    kept = convert(cast, tmp_path / "kept", gkv=1)
    assert {t.dtype for t in open_checkpoint(kept).tensors.values()} == {
        t.dtype for t in open_checkpoint(cast).tensors.values()
    }
    wide = tiny_models.load(
        convert(llama, tmp_path / "wide", gkv=2, merge="mean"), "LlamaForCausalLM"
    ).state_dict()
    narrow = tiny_models.load(cast, "LlamaForCausalLM").state_dict()
    for name, tensor in wide.items():
        assert torch.equal(narrow[name], tensor.to(getattr(torch, dtype)).float()), f"{name} rounded twice"


@pytest.mark.parametrize("sharded", [False, True])
def test_pickled_checkpoints_convert_to_the_same_bytes(sharded: bool, llama: Path, tmp_path: Path) -> None:
    """Many old Hub models exist only as pytorch_model.bin."""
    state = tiny_models.load(llama, "LlamaForCausalLM").state_dict()
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((llama / "config.json").read_text())
    names = sorted(state)
    if sharded:
        parts = {
            "pytorch_model-00001-of-00002.bin": names[::2],
            "pytorch_model-00002-of-00002.bin": names[1::2],
        }
        index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
        (pickled / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        parts = {"pytorch_model.bin": names}
    for file, part in parts.items():
        torch.save({name: state[name] for name in part}, pickled / file)
    out = convert(pickled, tmp_path / "out", gkv=2)
    assert all_tensors(out) == all_tensors(convert(llama, tmp_path / "reference", gkv=2))
    assert not list(out.glob("*.bin*"))
    assert len(list(out.glob("*.safetensors"))) == len(parts)
    assert verify(out, pickled)["passed"]


def test_shards_hold_what_the_index_says_and_no_more_than_asked(llama: Path, tmp_path: Path) -> None:
    """transformers, vLLM and llama.cpp all start from the index."""
    out = convert(llama, tmp_path / "out", gkv=2, max_shard_size="6KB")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(out.glob("*.safetensors"))
    assert [path.name for path in shards] == [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)
    ]
    held = {name: path.name for path in shards for name in load_file(path)}
    assert index["weight_map"] == held
    sizes = [sum(tensor.nbytes for tensor in load_file(path).values()) for path in shards]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert max(sizes) <= 6000
    one = convert(llama, tmp_path / "one", gkv=2, max_shard_size="1GB")
    assert [path.name for path in one.glob("*.safetensors*")] == ["model.safetensors"]
    assert all_tensors(one) == all_tensors(out)
    tiny_models.load(out, "LlamaForCausalLM")


def test_what_belongs_to_the_model_goes_along_and_stale_files_do_not(llama: Path, tmp_path: Path) -> None:
    """A converted model without its tokenizer or template is not usable; old weights beside it are a trap."""
    kept = (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "LICENSE",
        "generation_config.json",
    )
    stale = ("tf_model.h5", "model.gguf", "README.md", "training_args.bin", "modeling_llama.py")
    for name in (*kept, *stale):
        (llama / name).write_text(json.dumps({"text": name}))
    (llama / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": "code.py"}, "model_max_length": 9}'
    )
    out = convert(llama, tmp_path / "out", gkv=2, max_shard_size="1GB")
    for name in set(kept) - {"tokenizer_config.json"}:
        assert (out / name).read_text() == json.dumps({"text": name})
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"model_max_length": 9}
    report = json.loads((out / "gqkva_report.json").read_text())
    for name in stale:
        assert not (out / name).exists()
        assert name in report["files_left_behind"]
    assert not (out / "model.safetensors.index.json").exists()


def test_tied_embeddings_stored_twice_are_stored_once(llama: Path, tmp_path: Path) -> None:
    """Some savers write lm_head beside the embedding it is tied to; a wrong copy would untie them."""
    model = tiny_models.build("llama", "LlamaForCausalLM", tie_word_embeddings=True)
    folder = tiny_models.save(model, tmp_path / "tied")
    from safetensors.torch import save_file

    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    out = convert(folder, tmp_path / "out", gkv=2)
    assert "lm_head.weight" not in all_tensors(out)
    report = json.loads((out / "gqkva_report.json").read_text())
    assert "model.embed_tokens.weight" in report["dropped"]["lm_head.weight"]
    state["lm_head.weight"] += 1
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head.weight" in all_tensors(convert(folder, tmp_path / "untied", gkv=2))


def test_buffers_of_old_checkpoints_are_dropped_with_a_reason(llama: Path, tmp_path: Path) -> None:
    """Llama checkpoints of 2023 carry rotary frequencies that transformers recomputes."""
    from safetensors.torch import save_file

    model = tiny_models.load(llama, "LlamaForCausalLM")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text((llama / "config.json").read_text())
    save_file(
        {**model.state_dict(), name: torch.ones(2)}, old / "model.safetensors", metadata={"format": "pt"}
    )
    out = convert(old, tmp_path / "out", gkv=2)
    assert "recomputed" in json.loads((out / "gqkva_report.json").read_text())["dropped"][name]
    assert name not in all_tensors(out)


def test_weights_and_report_say_where_they_come_from(llama: Path, tmp_path: Path) -> None:
    """A folder that has travelled must still tell what it is."""
    out = convert(llama, tmp_path / "out", gkv=2, merge="first", grouping="random", seed=11)
    for path in out.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            metadata = file.metadata()
        assert metadata["format"] == "pt"
        said = json.loads(metadata["gqkva"])
        assert said["variant"] == "gqa-2"
        assert (said["merge"], said["grouping"], said["seed"]) == ("first", "random", 11)
    report = json.loads((out / "gqkva_report.json").read_text())
    assert report["source"]["name"] == str(llama)
    assert report["versions"]["gqkva-convert"] == "0.1.0"
    assert set(report["source"]["files"]) == {path.name for path in llama.glob("*.safetensors")}
    assert report["parameters"] == sum(
        p.numel() for p in tiny_models.load(out, "LlamaForCausalLM").parameters()
    )


def test_the_same_seed_gives_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    """A conversion must be repeatable by whoever reads its report."""
    options = {"gkv": 2, "merge": "random", "grouping": "random"}
    one = convert(llama, tmp_path / "one", seed=1, **options)
    again = convert(llama, tmp_path / "again", seed=1, **options)
    other = convert(llama, tmp_path / "other", seed=2, **options)
    assert all_tensors(one) == all_tensors(again) != all_tensors(other)


def test_a_dry_run_shows_everything_and_writes_nothing(llama: Path, gqkva: Run) -> None:
    """The plan is data: what --json prints must account for every tensor."""
    before = sorted(path.name for path in llama.parent.iterdir())
    out = llama.parent / "out"
    result = gqkva("convert", llama, out, "--gkv", "2", "--merge", "mean", "--dry-run", "--json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    tensors = [tensor for shard in data["shards"].values() for tensor in shard]
    assert {tensor["name"] for tensor in tensors} == set(open_checkpoint(llama).tensors)
    assert sum(tensor["operation"] == "merge" for tensor in tensors) == 4
    assert data["plan"]["blocks"][1]["target"]["num_key_value_heads"] == 2
    shown = gqkva("convert", llama, out, "--gkv", "2", "--dry-run").stdout
    assert "nothing written" in shown
    assert "0+1+2 3+4+5" in shown
    assert sorted(path.name for path in llama.parent.iterdir()) == before


def test_the_default_name_says_what_was_done(
    llama: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gqkva convert MODEL --gkv 2` alone must be enough."""
    monkeypatch.chdir(llama.parent)
    result = gqkva("convert", "./llama", "--gkv", "2")
    assert result.exit_code == 0
    assert (llama.parent / "llama-gqa-2" / "config.json").is_file()
    assert "MHA -> GQA-2" in result.stdout
    assert gqkva("convert", "llama", "--gkv", "1").exit_code == 0
    assert (llama.parent / "llama-mqa").is_dir()


@pytest.mark.parametrize(
    "name",
    [
        "stories260K-hf",
        "tinystories-656k-hf",
        pytest.param("aidreams230K-mha-hf", marks=pytest.mark.slow),
        pytest.param("stories260K-mha-hf", marks=pytest.mark.slow),
    ],
)
def test_real_checkpoints_convert_and_verify(name: str, shared_models: Path, tmp_path: Path) -> None:
    """Checkpoints trained by others, with their own tokenizers and settings."""
    for gkv in (2, 1):
        out = convert(shared_models / name, tmp_path / f"{gkv}", gkv=gkv)
        assert verify(out, shared_models / name)["passed"]
        assert (out / "tokenizer.json").read_bytes() == (shared_models / name / "tokenizer.json").read_bytes()


def test_copied_heads_of_a_real_model_merge_without_loss(shared_models: Path, tmp_path: Path) -> None:
    """stories260K-mha is stories260K with each key/value head copied to its two readers."""
    out = convert(shared_models / "stories260K-mha-hf", tmp_path / "out", gkv=4, merge="mean")
    assert all_tensors(out) == all_tensors(shared_models / "stories260K-hf")


def write_into(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(-1, 2)
        opened.write(b"\x7f")


def replace_by_copy(file: Path) -> None:
    copy = file.with_name("copy")
    copy.write_bytes(file.read_bytes())
    copy.replace(file)


def remove(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("change", [write_into, replace_by_copy, remove])
def test_a_source_that_changes_while_it_is_read_is_no_source(
    change: Callable[[Path], None], pickled: bool, llama: Path, tmp_path: Path
) -> None:
    """A download or a training run may still be writing: half old, half new would load and answer nonsense.

    A file that is put in another's place leaves the one that is being read as it was.
    """
    *_, file = stored = sorted(llama.glob("*.safetensors"))
    if pickled:
        weights = {name: torch.from_numpy(array) for one in stored for name, array in load_file(one).items()}
        file = llama / PICKLED
        torch.save(weights, file)
        for one in (*stored, llama / "model.safetensors.index.json"):
            one.unlink()
    first = threading.Lock()

    def meanwhile(count: int) -> None:
        if first.acquire(blocking=False):  # it is called from several threads
            change(file)

    if change is not write_into and not pickled:
        assert (convert(llama, tmp_path / "out", gkv=2, progress=meanwhile) / "config.json").is_file()
        return
    with pytest.raises(CheckpointError, match=rf"{file.name} was written to while being read") as refusal:
        convert(llama, tmp_path / "out", gkv=2, progress=meanwhile)
    assert refusal.value.exit_code == 3
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".out", "out"))]
