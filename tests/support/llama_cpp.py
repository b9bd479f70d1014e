"""llama.cpp through node-llama-cpp: logits, tokens and text of a GGUF file.

``npm i --prefix DIR --ignore-scripts --omit=optional node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1``
installs it, offline from then on; ``NODE_LLAMA_CPP=DIR`` names the folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

# Logits in full, with keys and values in float32.
_SCRIPT = """
import {readFileSync, writeFileSync} from "node:fs";
const [library, asked, result] = process.argv.slice(2);
const {getLlama} = await import(library);
const {model, tokens, texts, prompts, count} = JSON.parse(readFileSync(asked));
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const loaded = await llama.loadModel({modelPath: model, gpuLayers: 0});
const answer = {logits: [], ids: [], special: [], texts: [], vocabulary: loaded.vocabularyType};
if (tokens.length + prompts.length > 0) {
    const context = await loaded.createContext({
        contextSize: 256, threads: 1, flashAttention: false,
        experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
    });
    const sequence = context.getSequence();
    for (const row of tokens) {
        await sequence.clearHistory();
        const input = row.map((token) => [token, {generateNext: {logits: true}}]);
        const output = await sequence.controlledEvaluate(input);
        answer.logits.push(output.map(({next}) => {
            const logits = [];
            for (const [token, logit] of next.logits.entries()) logits[token] = logit;
            return logits;
        }));
    }
    for (const prompt of prompts) {
        await sequence.clearHistory();
        const made = [];
        for await (const token of sequence.evaluate(loaded.tokenize(prompt), {temperature: 0})) {
            made.push(token);
            if (made.length === count) break;
        }
        answer.texts.push(loaded.detokenize(made));
    }
}
for (const text of texts) {
    answer.ids.push([...loaded.tokenize(text, false)]);
    answer.special.push([...loaded.tokenize(text, true)]);
}
answer.bos = loaded.tokens.shouldPrependBosToken ? loaded.tokens.bos : null;
answer.eos = loaded.tokens.eos;
answer.template = loaded.fileInfo.metadata.tokenizer?.chat_template ?? null;
writeFileSync(result, JSON.stringify(answer));
process.exit(0);
"""


@dataclass(frozen=True)
class Answer:
    """What llama.cpp computes for a file.

    Attributes:
        logits: After each token of each row asked for, ``(positions, vocabulary)``.
        ids: Tokens of each text, without tokens that begin or end it.
        special: The same, with special tokens in the text recognised as such.
        texts: Greedy continuation of each prompt.
        bos: The token that begins a text, if any.
        eos: The token that ends a text.
        template: The chat template.
        vocabulary: Kind of the vocabulary.
    """

    logits: list[torch.Tensor] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    special: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    bos: int | None = None
    eos: int | None = None
    template: str | None = None
    vocabulary: str = ""


def write_tokenizer(folder: Path, size: int) -> None:
    """Write a tokenizer of the given number of tokens: some bytes, merged into pairs and longer pieces."""
    letters = ["\u010a", *(chr(number) for number in range(97, 123))]  # the first is the end of a line
    merges = [[left, right] for left in letters for right in letters][: max(0, size - len(letters))]
    words = [*letters, *(left + right for left, right in merges)][:size]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "vocab": {word: place for place, word in enumerate(words)},
            "merges": merges,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))


def require_llama_cpp() -> tuple[str, Path]:
    """Return the folder of the commands; skip the test if llama.cpp is absent."""
    home, node = os.environ.get("NODE_LLAMA_CPP"), shutil.which("node")
    if home is None or node is None:
        pytest.skip("no llama.cpp: NODE_LLAMA_CPP names no folder with node-llama-cpp, or node is missing")
    return node, Path(home) / "node_modules" / "node-llama-cpp" / "dist" / "index.js"


def ask_llama_cpp(
    path: Path,
    folder: Path,
    *,
    tokens: list[list[int]] | None = None,
    texts: list[str] | None = None,
    prompts: list[str] | None = None,
    count: int = 32,
) -> Answer:
    """Load a file in llama.cpp and query it; skip the test if llama.cpp is absent.

    Args:
        path: The GGUF file.
        folder: Where questions and answers may be written.
        tokens: Rows of tokens to compute logits for.
        texts: Texts to tokenise.
        prompts: Texts to continue.
        count: Tokens to generate.
    """
    node, library = require_llama_cpp()
    script, asked, result = folder / "ask.mjs", folder / "asked.json", folder / "answer.json"
    script.write_text(_SCRIPT)
    result.unlink(missing_ok=True)
    question = {"tokens": tokens or [], "texts": texts or [], "prompts": prompts or [], "count": count}
    asked.write_text(json.dumps({"model": str(path), **question}))
    done = subprocess.run([node, script, library, asked, result], capture_output=True, text=True, timeout=300)
    assert result.is_file(), f"llama.cpp failed: {done.stdout}\n{done.stderr}"
    answer = json.loads(result.read_text())
    logits = [torch.from_numpy(np.array(rows, dtype=np.float32)) for rows in answer.pop("logits")]
    return Answer(logits=logits, **answer)
