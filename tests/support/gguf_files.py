"""GGUF files of tiny Llamas for llama.cpp, and llama.cpp itself through node-llama-cpp.

``npm i --prefix DIR --ignore-scripts --omit=optional node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1``
installs it, offline from then on; ``NODE_LLAMA_CPP=DIR`` names the folder. Needs ``pip install gguf``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

# Tensors of a Llama as GGUF names them.
_LAYER = {
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
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

# Logits after each token, in full, with keys and values in float32.
_SCRIPT = """
import {writeFileSync} from "node:fs";
const [library, model, tokens, result] = process.argv.slice(2);
const {getLlama} = await import(library);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const loaded = await llama.loadModel({modelPath: model, gpuLayers: 0});
const context = await loaded.createContext({
    contextSize: 64, threads: 1, flashAttention: false,
    experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
});
const input = JSON.parse(tokens).map((token) => [token, {generateNext: {logits: true}}]);
const output = await context.getSequence().controlledEvaluate(input);
writeFileSync(result, JSON.stringify(output.map(({next}) => [...next.logits.entries()])));
process.exit(0);
"""


def write_gguf(folder: Path, path: Path) -> None:
    """Write a Llama, a Mistral without a window or a DeciLM as float32 GGUF with made-up words.

    Args:
        folder: Checkpoint folder with one file of weights and default rotary positions.
        path: GGUF file to write.
    """
    gguf = pytest.importorskip("gguf")
    config = json.loads((folder / "config.json").read_text())
    architecture = {"llama": "llama", "mistral": "llama", "deci": "deci"}[config["model_type"]]
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    counts = config.get("num_key_value_heads_per_layer") or [config["num_key_value_heads"]] * layers
    head_dim = config["head_dim"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(counts if architecture == "deci" else counts[0])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _add_words(writer, gguf, config["vocab_size"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module in _OUTSIDE:
            new = _OUTSIDE[module]
        else:
            layer, _, part = module.removeprefix("model.layers.").partition(".")
            new = f"blk.{layer}.{_LAYER[part]}"
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                tensor = _interleaved(tensor, head_dim)
        writer.add_tensor(f"{new}.weight", tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleaved(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of a projection ``(heads * head_dim, in)`` for rotary planes of neighbouring features."""
    halves = weight.unflatten(0, (-1, 2, head_dim // 2))
    return halves.transpose(1, 2).flatten(0, 2).contiguous()


def _add_words(writer: Any, gguf: Any, count: int) -> None:
    kinds = gguf.TokenType
    writer.add_vocab_size(count)
    writer.add_tokenizer_model("llama")
    letters = [f"<0x{byte:02X}>" for byte in range(256)]  # llama.cpp looks for the end of a line
    writer.add_token_list(["<unk>", "<s>", "</s>", *letters, *(f"w{number}" for number in range(259, count))])
    writer.add_token_scores([-float(number) for number in range(count)])
    writer.add_token_types(
        [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256 + [kinds.NORMAL] * (count - 259)
    )
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def llama_cpp_logits(path: Path, tokens: list[int]) -> torch.Tensor:
    """Logits of llama.cpp after each of the tokens, ``(positions, vocabulary)``; skips where it is absent."""
    home, node = os.environ.get("NODE_LLAMA_CPP"), shutil.which("node")
    if home is None or node is None:
        pytest.skip("no llama.cpp: NODE_LLAMA_CPP names no folder with node-llama-cpp, or node is missing")
    library = Path(home) / "node_modules" / "node-llama-cpp" / "dist" / "index.js"
    script, result = path.with_suffix(".mjs"), path.with_suffix(".json")
    script.write_text(_SCRIPT)
    command = [node, script, library, path, json.dumps(tokens), result]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.is_file(), f"llama.cpp failed: {done.stdout}\n{done.stderr}"
    found = [dict(row) for row in json.loads(result.read_text())]
    return torch.tensor(np.array([[row[number] for number in range(len(row))] for row in found]))
