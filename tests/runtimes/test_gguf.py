"""A GGUF file holds the export's weights where llama.cpp looks for them, and its tokenizer."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_models
import torch
from grouped_pairs import write_pair
from llama_cpp import write_tokenizer
from safetensors.torch import load_file, save_file
from typer.testing import Result

import gqkva_convert
from gqkva_convert import export
from gqkva_convert.architectures import FAMILIES
from gqkva_convert.runtimes.gguf import tensors, write
from gqkva_convert.runtimes.gguf.families import RUNTIME_FAMILIES

Run = Callable[..., Result]

DEMO = Path(gqkva_convert.__file__).parent / "demo_model" / "checkpoint"


def grouped(folder: Path, variant: str, family: str = "llama", **changes: Any) -> Path:
    """A grouped model with a tokenizer."""
    model = tiny_models.build(family, FAMILIES[family].architecture, **changes)
    made = write_pair(tiny_models.save(model, folder / "source"), variant, folder)[0]
    write_tokenizer(made, model.config.vocab_size)
    return made


def read(folder: Path) -> gguf.GGUFReader:
    """The one GGUF file of a folder."""
    (path,) = folder.glob("*.gguf")
    return gguf.GGUFReader(path)


def weights(reader: gguf.GGUFReader) -> dict[str, torch.Tensor]:
    """Its tensors as float32, axes as in transformers."""
    found = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        shape = [int(size) for size in reversed(tensor.shape)]
        found[tensor.name] = torch.from_numpy(np.array(values)).reshape(shape)
    return found


def key(reader: gguf.GGUFReader, name: str) -> Any:
    """A value of its metadata; None where it has none."""
    field = reader.fields.get(name)
    return None if field is None else field.contents()


def neighbours(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of heads in the order that turns 2i and 2i + 1 together, one by one."""
    order = []
    for head in range(len(rows) // head_dim):
        for plane in range(head_dim // 2):
            order += [head * head_dim + plane, head * head_dim + plane + head_dim // 2]
    return rows[order]


LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@pytest.mark.parametrize("block_bytes", [64, 4 << 20])
@pytest.mark.parametrize(
    ("variant", "options"),
    [("unequal", {}), ("mixed", {"architecture": "deci"}), ("GQKVA", {}), ("GQA", {"attention_bias": True})],
)
def test_a_llama_is_its_export_under_other_names(
    variant: str, options: dict[str, Any], block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor to the bit, queries and keys with rows in llama.cpp's order, in blocks of any size."""
    monkeypatch.setattr(tensors, "BLOCK_BYTES", block_bytes)
    changes = {name: options[name] for name in options if name != "architecture"}
    source = grouped(tmp_path, variant, num_hidden_layers=3, **changes)
    stock = export(source, tmp_path / "rewritten", architecture=options.get("architecture"))
    reader = read(export(source, tmp_path / "out", runtime="gguf"))
    expected = {}
    for name, tensor in load_file(stock / "model.safetensors").items():
        module, _, part = name.rpartition(".")
        new = OUTSIDE.get(module)
        if new is None:
            layer, _, inner = module.removeprefix("model.layers.").partition(".")
            new = f"blk.{layer}.{LAYER[inner]}"
            if inner in ("self_attn.q_proj", "self_attn.k_proj"):
                tensor = neighbours(tensor, 4)
        expected[f"{new}.{part}"] = tensor
    found = weights(reader)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert key(reader, "general.architecture") == options.get("architecture", "llama")


@pytest.mark.parametrize("family", sorted(RUNTIME_FAMILIES.keys() - {"deci"}))
def test_every_family_keeps_every_element(family: str, tmp_path: Path) -> None:
    """Nothing is left out or read twice; Gemma's gains get their 1."""
    source = grouped(tmp_path, "GQA", family, **({"qk_layernorm": False} if family == "phi" else {}))
    stored = [
        tensor + 1 if family == "gemma" and name.endswith("norm.weight") else tensor
        for name, tensor in load_file(source / "model.safetensors").items()
    ]
    found = weights(read(export(source, tmp_path / "out", runtime="gguf")))
    expected = torch.cat([tensor.flatten() for tensor in stored]).sort().values
    assert torch.equal(torch.cat([tensor.flatten() for tensor in found.values()]).sort().values, expected)


def test_norms_of_each_head_stand_in_the_heads_order(tmp_path: Path) -> None:
    """StableLM stores a tensor a head, and shared heads are several after the export."""
    source = grouped(tmp_path, "GQKVA", "stablelm")
    stock = load_file(export(source, tmp_path / "rewritten") / "model.safetensors")
    found = weights(read(export(source, tmp_path / "out", runtime="gguf")))
    for role, heads in (("q", 6), ("k", 3)):
        norms = [stock[f"model.layers.1.self_attn.{role}_layernorm.norms.{n}.weight"] for n in range(heads)]
        assert torch.equal(found[f"blk.1.attn_{role}_norm.weight"], torch.stack(norms))


# Largest error of an element, relative to the largest of its 32 neighbours.
STEPS = {"F32": 0.0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": (0.5 + 127 / 2048) / 127}


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_dtypes(dtype: str, tmp_path: Path) -> None:
    """Matrices within the error of their type (half a step; a block's scale is a float16), vectors exact."""
    source = grouped(tmp_path, "GQA", hidden_size=96, intermediate_size=80)
    reader = read(export(source, tmp_path / "out", runtime="gguf", dtype=dtype))
    stock = load_file(source / "model.safetensors")
    found, kinds = weights(reader), {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.ffn_up.weight"] == dtype.upper()
    # Rows of 80 are no whole number of blocks of 32.
    assert kinds["blk.1.ffn_down.weight"] == ("F16" if dtype == "q8_0" else dtype.upper())
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert torch.equal(found["blk.0.attn_norm.weight"], stock["model.layers.0.input_layernorm.weight"])
    names = {"mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "self_attn.v_proj": "attn_v"}
    for name, mine in names.items():
        expected = stock[f"model.layers.1.{name}.weight"].unflatten(1, (-1, 16))
        error = (found[f"blk.1.{mine}.weight"].unflatten(1, (-1, 16)) - expected).abs()
        # Blocks of 32 are at least as fine as whole rows.
        largest = expected.abs().amax((1, 2) if kinds[f"blk.1.{mine}.weight"] == "Q8_0" else 2, keepdim=True)
        assert (error <= STEPS[kinds[f"blk.1.{mine}.weight"]] * largest).all()


def test_a_checkpoint_keeps_its_dtype(tmp_path: Path) -> None:
    """bfloat16 stays what it is, to the bit, but for vectors."""
    reader = read(export(DEMO, tmp_path / "out", runtime="gguf"))
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"BF16", "F32"}
    expected = load_file(DEMO / "model.safetensors")["model.layers.2.mlp.up_proj.weight"].float()
    assert torch.equal(weights(reader)["blk.2.ffn_up.weight"], expected)


def test_hyperparameters(tmp_path: Path) -> None:
    """What llama.cpp builds its graph from."""
    source = grouped(tmp_path, "mixed", num_hidden_layers=3)
    reader = read(export(source, tmp_path / "out", runtime="gguf"))
    expected = {
        "deci.block_count": 3,
        "deci.attention.head_count": 9,
        "deci.attention.head_count_kv": [3, 3, 1],
        "deci.attention.key_length": 4,
        "deci.rope.dimension_count": 4,
        "deci.feed_forward_length": 26,
        "deci.context_length": 64,
        "general.file_type": 0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
    }
    assert {name: key(reader, name) for name in expected} == expected
    assert key(reader, "deci.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("rope", "keys"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "beta_fast": 8.0},
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 2.0,
                "rope.scaling.original_context_length": 16,
                "rope.scaling.yarn_beta_fast": 8.0,
            },
        ),
    ],
)
def test_longer_contexts(rope: dict[str, Any], keys: dict[str, Any], tmp_path: Path) -> None:
    """Rotary positions that are stretched."""
    source = grouped(tmp_path, "GQA", rope_parameters={**rope, "rope_theta": 5000.0})
    reader = read(export(source, tmp_path / "out", runtime="gguf"))
    assert {name: key(reader, f"llama.{name}") for name in keys} == keys
    assert key(reader, "llama.rope.freq_base") == 5000.0


def test_rotary_factors_of_llama_3_are_those_of_transformers(tmp_path: Path) -> None:
    """llama.cpp divides frequencies by a tensor."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    source = grouped(tmp_path, "GQA", rope_parameters=rope, head_dim=16)
    found = weights(read(export(source, tmp_path / "out", runtime="gguf")))["rope_freqs.weight"]
    model = tiny_models.build("llama", "LlamaForCausalLM", rope_parameters=rope, head_dim=16)
    plain = 5000.0 ** -(torch.arange(8) / 8)
    torch.testing.assert_close(plain / found, model.model.rotary_emb.inv_freq)


def test_a_window_ends_the_context(tmp_path: Path, gqkva: Run) -> None:
    """llama.cpp attends to everything in a Mistral, which is right as far as the window reaches."""
    source = grouped(tmp_path, "GQA", "mistral", sliding_window=7)
    result = gqkva("export", source, tmp_path / "out", "--runtime", "gguf")
    assert "note: the context ends at sliding_window 7" in result.stdout
    assert key(read(tmp_path / "out"), "llama.context_length") == 7


@pytest.mark.parametrize("stored", ["model.embed_tokens.weight", "lm_head.weight"])
def test_tied_embeddings_are_stored_once(stored: str, tmp_path: Path) -> None:
    """Under either name; llama.cpp takes them for the output itself."""
    source = grouped(tmp_path, "GQA", tie_word_embeddings=True)
    parts = load_file(source / "model.safetensors")
    parts[stored] = parts.pop("model.embed_tokens.weight")
    save_file(parts, source / "model.safetensors", metadata={"format": "pt"})
    found = weights(read(export(source, tmp_path / "out", runtime="gguf")))
    assert torch.equal(found["token_embd.weight"], parts[stored])
    assert "output.weight" not in found


def test_byte_tokens_and_merges_survive() -> None:
    """The built-in model's own tokenizer, token by token."""
    config = json.loads((DEMO / "config.json").read_text())
    vocabulary = write.read_vocabulary(DEMO, config)
    model = json.loads((DEMO / "tokenizer.json").read_text())["model"]
    assert (vocabulary.model, vocabulary.pre, vocabulary.notes) == ("gpt2", "gpt-2", ())
    assert {token.decode(): place for place, token in enumerate(vocabulary.tokens)} == model["vocab"]
    assert [merge.split(" ") for merge in vocabulary.special.merges] == model["merges"]
    assert vocabulary.types[0] == gguf.TokenType.CONTROL
    assert set(vocabulary.types[1:]) == {gguf.TokenType.NORMAL}
    assert vocabulary.special.special_token_ids == {"bos": 0, "eos": 0}
    assert vocabulary.special.add_special_token == {"bos": False, "eos": False}


@pytest.mark.parametrize("name", ["stories260K-hf", "aidreams230K-mha-hf", "tinystories-656k-hf"])
def test_pieces_survive(name: str, shared_models: Path, tmp_path: Path) -> None:
    """SentencePiece's tokens with their bytes; what merges first has the highest score."""
    folder = shared_models / name
    reader = read(export(folder, tmp_path / "out", runtime="gguf"))
    data = json.loads((folder / "tokenizer.json").read_text())
    tokens, scores = key(reader, "tokenizer.ggml.tokens"), key(reader, "tokenizer.ggml.scores")
    types = key(reader, "tokenizer.ggml.token_type")
    assert {token: place for place, token in enumerate(tokens)} == data["model"]["vocab"]
    assert types[:3] == [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    assert types.count(gguf.TokenType.BYTE) == (0 if name.startswith("tiny") else 256)
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in data["model"]["merges"]]
    made = list(dict.fromkeys("".join(pair) for pair in pairs))
    score = dict(zip(tokens, scores, strict=True))
    assert sorted(made, key=lambda token: -score[token]) == made
    assert key(reader, "tokenizer.ggml.bos_token_id") == 1
    assert key(reader, "tokenizer.ggml.add_bos_token") is True
    assert key(reader, "tokenizer.ggml.add_space_prefix") is True


def test_what_tokenises_otherwise_is_said(shared_models: Path, tmp_path: Path, gqkva: Run) -> None:
    """A vocabulary without bytes, and merges that SentencePiece would not have left out."""
    folder = shared_models / "tinystories-656k-hf"
    result = gqkva("export", folder, tmp_path / "out", "--runtime", "gguf", "--json")
    notes = " ".join(json.loads(result.stdout)["notes"])
    assert "lacks 256 of 256 bytes" in notes
    assert "1063 pairs that make a token are no merges" in notes
    assert "puts a space before texts that begin with one" in notes


def test_a_lone_sentencepiece_model(tmp_path: Path) -> None:
    """Folders older than tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    source = grouped(tmp_path, "GQA", vocab_size=300)
    text = tmp_path / "text.txt"
    text.write_text("a bee sees a sea; sees bees as easy seas\n" * 20)
    options = {"vocab_size": 290, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=str(tmp_path / "m"), **options)
    shutil.copy(tmp_path / "m.model", source / "tokenizer.model")
    (source / "tokenizer.json").unlink()
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": False}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "bos_token_id": 1, "eos_token_id": 2}))
    reader = read(export(source, tmp_path / "out", runtime="gguf"))
    processor = sentencepiece.SentencePieceProcessor(str(tmp_path / "m.model"))
    tokens, types = key(reader, "tokenizer.ggml.tokens"), key(reader, "tokenizer.ggml.token_type")
    assert tokens[:290] == [processor.IdToPiece(place) for place in range(290)]
    assert tokens[290:] == [f"[PAD{place}]" for place in range(290, 300)]
    assert set(types[290:]) == {gguf.TokenType.UNUSED}
    assert types.count(gguf.TokenType.BYTE) == 256
    assert key(reader, "tokenizer.ggml.bos_token_id") == 1


def test_special_tokens_and_the_chat_template(tmp_path: Path) -> None:
    """What a chat needs: the template, tokens that are no text, and what stands before a text."""
    source = grouped(tmp_path, "GQA")
    path = source / "tokenizer.json"
    data = json.loads(path.read_text())
    added = [
        {"id": 34, "content": "<s>", "special": True, "normalized": False},
        {"id": 35, "content": "<tool>", "special": False, "normalized": False},
    ]
    vocab = {word: place for word, place in data["model"]["vocab"].items() if place < 34}
    data["model"].update(vocab=vocab, merges=[m for m in data["model"]["merges"] if "".join(m) in vocab])
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [34], "tokens": ["<s>"]}},
    }
    path.write_text(json.dumps({**data, "added_tokens": added, "post_processor": template}))
    settings = {"bos_token": "<s>", "chat_template": "{{ messages }}"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    reader = read(export(source, tmp_path / "out", runtime="gguf"))
    assert key(reader, "tokenizer.ggml.tokens")[33:] == [list(vocab)[33], "<s>", "<tool>", "[PAD36]"]
    kinds = [gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNUSED]
    assert key(reader, "tokenizer.ggml.token_type")[34:] == kinds
    assert key(reader, "tokenizer.ggml.bos_token_id") == 34
    assert key(reader, "tokenizer.ggml.add_bos_token") is True
    assert key(reader, "tokenizer.ggml.add_eos_token") is False
    assert key(reader, "tokenizer.chat_template") == "{{ messages }}"


def test_the_command_and_its_report(tmp_path: Path, gqkva: Run) -> None:
    """A result for people, one for programs, and where the file comes from."""
    source = grouped(tmp_path, "mixed", num_hidden_layers=3)
    result = gqkva("export", source, tmp_path / "out", "--runtime", "gguf", "--dtype", "bf16")
    assert result.exit_code == 0, result.stderr
    assert "out/model-bf16.gguf: deci, GQA-3 and MQA, bf16, tokenizer gpt2/gpt-2, " in result.stdout
    assert "KV cache 112 B -> 112 B a token" in result.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model-bf16.gguf", "gguf_report.json"}
    report = json.loads((tmp_path / "out" / "gguf_report.json").read_text())
    assert report["source"]["name"] == str(source)
    assert report["key_value_heads"] == [3, 3, 1]
    assert (report["architecture"], report["dtype"]) == ("deci", "bf16")
    assert report["versions"]["gguf"]
    (entry,) = report["files"].values()
    assert entry["bytes"] == (tmp_path / "out" / "model-bf16.gguf").stat().st_size
    assert len(entry["sha256"]) == 64
    again = gqkva("export", source, tmp_path / "out", "--runtime", "gguf")
    assert again.exit_code == 7
    assert "already exists" in again.stderr
    again = gqkva("export", source, tmp_path / "out", "--runtime", "gguf", "--overwrite", "--json")
    assert json.loads(again.stdout)["file"] == "model-f32.gguf"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grouped", "out", "source", "stock"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    refused = gqkva("export", source, tmp_path / "other", "--runtime", "gguf", "--overwrite")
    assert refused.exit_code == 7


def test_progress_ends_where_it_was_said_to(tmp_path: Path) -> None:
    """A bar that stops short, or goes on, tells nobody when the file is ready."""
    prepared = write.prepare_gguf(grouped(tmp_path, "GQA"), tmp_path / "out")
    counts: list[int] = []
    write.write_gguf(prepared, progress=counts.append)
    head = next((tmp_path / "out").glob("*.gguf")).stat().st_size - prepared.nbytes
    assert sum(counts) == prepared.work_bytes + head  # keys and names are read for the checksum, too


def test_the_page_names_every_family() -> None:
    """What is refused and what is not."""
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    assert all(f"| {family}" in page for family in RUNTIME_FAMILIES)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupt_leaves_nothing(
    error: BaseException, tmp_path: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start, in the middle, and in the check of what was written."""
    source = grouped(tmp_path, "GQA")
    before = sorted(path.name for path in tmp_path.iterdir())
    original = tensors._encode
    for number in (1, 9):
        calls = 0

        def hooked(*arguments: Any, number: int = number) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                raise error
            return original(*arguments)

        monkeypatch.setattr(tensors, "_encode", hooked)
        result = gqkva("export", source, tmp_path / "out", "--runtime", "gguf")
        assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 7)
        assert calls == number
        assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_file_that_reads_back_otherwise_is_not_published(
    tmp_path: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk that nobody reports, or a fault of ours."""
    source = grouped(tmp_path, "GQA")
    original = write._write_file

    def short(export: Any, path: Path, progress: Any) -> None:
        original(export, path, progress)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 64)

    monkeypatch.setattr(write, "_write_file", short)
    result = gqkva("export", source, tmp_path / "out", "--runtime", "gguf")
    assert result.exit_code == 9
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--runtime", "onnx"], 2, "no runtime 'onnx'"),
        (["--runtime", "gguf", "--dtype", "q4_0"], 2, "choose one of f32, f16, bf16, q8_0"),
        (["--dtype", "f16"], 2, "--dtype goes with --runtime gguf"),
        (["--runtime", "gguf", "--max-shard-size", "1GB"], 2, "writes one file"),
        (["--runtime", "gguf", "--architecture", "dec"], 2, "no architecture 'dec'"),
    ],
)
def test_options_that_cannot_be(
    arguments: list[str], code: int, message: str, tmp_path: Path, gqkva: Run
) -> None:
    result = gqkva("export", DEMO, tmp_path / "out", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("bert", {}, "it writes deci, gemma, llama, mistral, olmo, olmo2, phi, phi3, qwen2, qwen3"),
        ("llama", {"hidden_act": "gelu"}, "llama computes silu alone"),
        ("starcoder2", {"hidden_act": "gelu"}, "computes gelu_pytorch_tanh alone"),
        (
            "phi3",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 4,
                    "long_factor": [2.0] * 4,
                    "factor": 2.0,
                }
            },
            "'longrope' are not written",
        ),
        ("phi", {"qk_layernorm": True}, "phi2 has no place for"),
        ("qwen3", {"attention_bias": True}, "has no place for"),
        ("gemma", {"tie_word_embeddings": False}, "no place for 'lm_head.weight'"),
        ("starcoder2", {"use_bias": False}, "needs 'blk.0.attn_q.bias'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "mscale": 0.7}},
            "mscale of yarn",
        ),
    ],
)
def test_models_that_it_cannot_hold(
    family: str, changes: dict[str, Any], message: str, tmp_path: Path, gqkva: Run
) -> None:
    """llama.cpp would not load them, or run them as something else."""
    model = tiny_models.build(family, FAMILIES[family].architecture, **changes)
    source = tiny_models.save(model, tmp_path / "source")
    write_tokenizer(source, model.config.vocab_size)
    result = gqkva("export", source, tmp_path / "out", "--runtime", "gguf")
    assert result.exit_code in (4, 5)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "wide"),
        ("max_position_embeddings", 0),
        ("partial_rotary_factor", 1e400),
        ("rope_parameters", {"rope_type": "linear", "factor": "2"}),
        ("rope_parameters", [1]),
    ],
)
def test_configurations_edited_by_hand(key: str, value: object, tmp_path: Path, gqkva: Run) -> None:
    """One line, whatever stands there."""
    source = grouped(tmp_path, "GQA")
    path = source / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_parameters": None, key: value}))
    result = gqkva("export", source, tmp_path / "out", "--runtime", "gguf")
    assert result.exit_code == 4, result.output
    assert key in result.stderr or "factor" in result.stderr
    assert result.stderr.count("\n") == 1


def test_heads_of_another_width_than_the_model(tmp_path: Path, gqkva: Run) -> None:
    """Unequal groups are filled up, which llama.cpp's Phi-3 has no key for; a Qwen2 becomes a Llama."""
    result = gqkva(
        "export", grouped(tmp_path / "3", "unequal", "phi3"), tmp_path / "out", "--runtime", "gguf"
    )
    assert result.exit_code == 5
    assert "9 heads of 8 features are 72 wide" in result.stderr
    reader = read(export(grouped(tmp_path / "2", "unequal", "qwen2"), tmp_path / "q", runtime="gguf"))
    assert key(reader, "general.architecture") == "llama"


def test_other_tasks(tmp_path: Path, gqkva: Run) -> None:
    """A classifier's head has no place."""
    model = tiny_models.build("llama", "LlamaForSequenceClassification", pad_token_id=0)
    source = tiny_models.save(model, tmp_path / "source")
    result = gqkva("export", source, tmp_path / "out", "--runtime", "gguf")
    assert result.exit_code == 5
    assert "writes language models" in result.stderr


def change_tokenizer(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"].update(changes.pop("model", {}))
    (folder / "tokenizer.json").write_text(json.dumps({**data, **changes}))


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"model": {"type": "Unigram"}}, 5, "holds a Unigram model"),
        ({"model": {"merges": []}}, 5, "has no merges"),
        ({"model": {"dropout": 0.1}}, 5, "sets dropout"),
        ({"model": {"ignore_merges": True}}, 5, "has ignore_merges true, llama.cpp's gpt-2 not"),
        ({"model": {"byte_fallback": True}}, 5, "prepares texts in a way that llama.cpp does not"),
        ({"normalizer": {"type": "Lowercase"}}, 5, "changes texts by Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, 5, "known to be one of llama.cpp's (dbrx, gpt-2, "),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, 5, "not known to be one of"),
        (
            {"model": {"vocab": {f"t{place}": place for place in range(38)}}},
            3,
            "has 38 tokens, config.json gives the model 37",
        ),
        ({"added_tokens": [{"content": "<x>"}]}, 3, "files are damaged"),
        ({"model": {"vocab": []}}, 3, "files are damaged"),
        ({"model": {"merges": ["a b", "abc"]}}, 3, "a merge is not a pair of tokens"),
        ({"model": {"vocab": {"\ud800": 1}}}, 3, "files are damaged"),
    ],
)
def test_tokenizers_that_it_cannot_hold(
    changes: dict[str, Any], code: int, message: str, tmp_path: Path, gqkva: Run
) -> None:
    """llama.cpp would divide texts into other tokens, in silence."""
    source = grouped(tmp_path, "GQA")
    change_tokenizer(source, **changes)
    result = gqkva("export", source, tmp_path / "out", "--runtime", "gguf")
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_added_tokens_that_the_model_lacks_are_left_out(tmp_path: Path, gqkva: Run) -> None:
    """A padding token added after training has no embedding; transformers loads such folders, too."""
    source = grouped(tmp_path, "GQA")
    added = [{"id": place, "content": f"<x{place}>", "special": True} for place in (36, 37, 38, 39, 40)]
    change_tokenizer(source, added_tokens=added)
    result = gqkva("export", source, tmp_path / "out", "--runtime", "gguf")
    assert result.exit_code == 0, result.output
    assert "the model has 37 tokens, so that added ones of the tokenizer are left out" in result.stdout
    assert "'<x37>' (37), '<x38>' (38), '<x39>' (39) and 1 more" in result.stdout
    reader = read(tmp_path / "out")
    tokens = key(reader, "tokenizer.ggml.tokens")
    assert (len(tokens), tokens[36]) == (37, "<x36>")
    (rows,) = (tensor.shape for tensor in reader.tensors if tensor.name == "token_embd.weight")
    assert rows[1] == 37


def test_small_differences_are_said(tmp_path: Path, gqkva: Run) -> None:
    """Qwen's normalizer, Phi-3's chat tokens, an end that llama.cpp does not add: few texts, but some."""
    source = grouped(tmp_path, "GQA")
    template = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "a", "type_id": 0}}],
        "special_tokens": {"a": {"id": "a", "ids": [1], "tokens": ["a"]}},
    }
    added = [{"id": 36, "content": "<|end|>", "special": True, "rstrip": True}]
    change_tokenizer(source, normalizer={"type": "NFC"}, added_tokens=added, post_processor=template)
    result = gqkva("export", source, tmp_path / "out", "--runtime", "gguf")
    assert result.exit_code == 0, result.output
    assert "note: the tokenizer composes accents (NFC)" in result.stdout
    assert "note: 1 added tokens take spaces beside them" in result.stdout
    assert "note: the tokenizer puts token 1 as eos around texts, llama.cpp will not" in result.stdout


def test_a_folder_without_a_tokenizer(tmp_path: Path, gqkva: Run) -> None:
    """None, one that leads out of the folder, and one in files that only transformers reads."""
    source = grouped(tmp_path, "GQA")
    (source / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    result = gqkva("export", source, tmp_path / "out", "--runtime", "gguf")
    assert result.exit_code == 3
    assert "has no tokenizer" in result.stderr
    (source / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
    result = gqkva("export", source, tmp_path / "out", "--runtime", "gguf")
    assert result.exit_code == 3
    assert "tokenizer.json is a link to" in result.stderr
    (source / "tokenizer.json").unlink()
    (source / "vocab.json").write_text("{}")
    result = gqkva("export", source, tmp_path / "out", "--runtime", "gguf")
    assert result.exit_code == 5
    assert "stored as vocab.json" in result.stderr


def test_code_beside_the_tokenizer_is_not_run(tmp_path: Path, gqkva: Run) -> None:
    """A configuration may name a class of its own."""
    source = grouped(tmp_path, "GQA")
    (source / "tokenization_evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_evil.T", None]}, "tokenizer_class": "T"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    assert gqkva("export", source, tmp_path / "out", "--runtime", "gguf").exit_code == 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [(float("nan"), "f32", "holds NaN or infinity"), (1e5, "f16", "does not fit f16"), (1e9, "q8_0", "q8_0")],
)
def test_weights_that_cannot_be_written(
    value: float, dtype: str, message: str, tmp_path: Path, gqkva: Run
) -> None:
    """llama.cpp would answer nonsense."""
    source = grouped(tmp_path, "GQA", intermediate_size=32)
    parts = load_file(source / "model.safetensors")
    parts["model.layers.1.mlp.down_proj.weight"][3, 5] = value
    save_file(parts, source / "model.safetensors", metadata={"format": "pt"})
    result = gqkva("export", source, tmp_path / "out", "--runtime", "gguf", "--dtype", dtype)
    assert result.exit_code == 6
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(tmp_path: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra, since few need it."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    result = gqkva("export", DEMO, tmp_path / "out", "--runtime", "gguf")
    assert result.exit_code == 7
    assert "pip install 'gqkva-convert[gguf]'" in result.stderr
