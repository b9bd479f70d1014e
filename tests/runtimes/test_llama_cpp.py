"""llama.cpp answers from our GGUF files what transformers answers from the checkpoints.

``pytest -m slow tests/runtimes/test_llama_cpp.py``; `llama_cpp.py` says how llama.cpp is found.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from grouped_pairs import write_pair
from llama_cpp import Answer, ask_llama_cpp, write_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import gqkva_convert
from gqkva_convert import convert, export
from gqkva_convert.architectures import FAMILIES
from gqkva_convert.modeling.loading import load_model
from gqkva_convert.runtimes.gguf import byte_pairs
from gqkva_convert.runtimes.gguf.families import RUNTIME_FAMILIES

pytestmark = pytest.mark.slow

DEMO = Path(gqkva_convert.__file__).parent / "demo_model" / "checkpoint"

THETA = {"rope_theta": 1e4}
YARN = {"rope_type": "yarn", **THETA, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", **THETA, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e3,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
PARTIAL = {"rope_type": "default", **THETA, "partial_rotary_factor": 0.5}
THREE = {"num_hidden_layers": 3}

CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(
        ("llama", variant, {})
        for variant in ("MHA", "GQA", "MQA", "unequal", "GQKVA", "GKVA", "MKVA", "apart")
    ),
    ("llama", "mixed", THREE),  # as a deci
    ("llama", "mixed", {**THREE, "rope_parameters": LLAMA3}),
    ("llama", "mixed", {**THREE, "rope_parameters": YARN}),  # which a deci does not take, so as a llama
    ("llama", "GQA", {"attention_bias": True, "mlp_bias": True}),
    ("llama", "GQA", {"tie_word_embeddings": True}),
    ("llama", "GQA", {"rope_parameters": LLAMA3}),
    ("llama", "GQA", {"rope_parameters": LINEAR}),
    ("llama", "GQA", {"rope_parameters": YARN}),
    ("llama", "GQA", {"rope_parameters": {**YARN, "attention_factor": 1.7}}),
    ("llama", "GQA", {"rope_parameters": {**YARN, "beta_fast": 4.0, "beta_slow": 2.0}}),
    ("mistral", "unequal", {}),
    ("mistral", "mixed", {**THREE, "sliding_window": None}),
    ("mistral", "GQA", {"sliding_window": 9}),
    ("qwen2", "GQA", {}),
    ("qwen2", "GQKVA", {"rope_parameters": YARN}),
    ("qwen2", "unequal", {"rope_parameters": LINEAR}),  # as a llama
    ("qwen3", "GQA", {}),
    ("qwen3", "unequal", {"rope_parameters": YARN}),
    ("qwen3", "GQKVA", {"rope_parameters": LINEAR}),
    ("gemma", "GQA", {}),
    ("gemma", "unequal", {}),
    ("phi", "GQA", {"qk_layernorm": False}),
    ("phi", "GQKVA", {"qk_layernorm": False, "rope_parameters": {**YARN, "partial_rotary_factor": 0.5}}),
    ("phi", "GQA", {"qk_layernorm": False, "tie_word_embeddings": True}),
    ("phi3", "GQA", {}),
    ("phi3", "GQKVA", {"rope_parameters": PARTIAL}),
    ("starcoder2", "GQA", {}),
    ("starcoder2", "GQKVA", {"tie_word_embeddings": False}),
    ("stablelm", "GQA", {}),
    ("stablelm", "GQKVA", {}),
    ("stablelm", "GQA", {"qk_layernorm": False, "use_parallel_residual": True}),
    ("stablelm", "GQA", {"use_qkv_bias": False, "tie_word_embeddings": True}),
    ("olmo", "GQA", {"tie_word_embeddings": True}),
    ("olmo", "GQKVA", {"clip_qkv": 0.7}),
    ("olmo2", "GQA", {"rope_parameters": LINEAR}),
    ("olmo2", "GQKVA", {"rope_parameters": YARN}),
]
# llama.cpp looks the GELU up in a table of float16.
TOLERANCES = {"gemma": 1e-3, "phi": 1e-3, "starcoder2": 1e-3}


def test_every_family_is_among_the_cases() -> None:
    """A family that has not been run in llama.cpp is refused."""
    assert {family for family, _, _ in CASES} | {"deci"} == RUNTIME_FAMILIES.keys()


@pytest.mark.parametrize(("family", "variant", "changes"), CASES)
def test_logits_are_those_of_transformers(
    family: str, variant: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """At 40 positions; the grouped model itself is what is compared with."""
    model = tiny_models.build(family, FAMILIES[family].architecture, **changes)
    grouped, _ = write_pair(tiny_models.save(model, tmp_path / "source"), variant, tmp_path)
    write_tokenizer(grouped, model.config.vocab_size)
    out = export(grouped, tmp_path / "out", runtime="gguf")
    length = changes.get("sliding_window") or 40
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (2, length), generator=generator)
    with torch.inference_mode():
        expected = load_model(grouped, "")(tokens).logits
    answer = ask_llama_cpp(next(out.glob("*.gguf")), tmp_path, tokens=tokens.tolist())
    found = torch.stack(answer.logits)
    assert found.shape == expected.shape
    error, tolerance = (found - expected).abs().max(), TOLERANCES.get(family, 1e-5) * expected.abs().max()
    assert error < tolerance
    # The same token everywhere, unless two are closer to each other than the tolerance.
    first, second = expected.topk(2).values.unbind(-1)
    assert ((found.argmax(-1) == expected.argmax(-1)) | (first - second < 2 * tolerance)).all()


TEXTS = [
    "Once upon a time, there was a little girl.",
    "def f(self, x):\n    return x  +  1\n",
    "two  spaces   three",
    "naïve café 日本語 🙂 Ünïcode Straße",
    "123456 789 1,234.5",
    "a\n\n\nb\t\tc",
    "Don't WE'LL go? it's I'M",
    "Tab\tand\r\nline\r\n\r\n  x",
    "",
    "....!!!\n\n",
    "for i in range(10):\n        self.x[i] += 1 # comment",
    "x\u00a0y\u3000z  \n  w",
    "مرحبا بالعالم ١٢٣ नमस्ते",
]
LEADING = ["  two spaces in front", " ", "\n"]
PLAIN = [
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.",
    'One day, she found a big red ball. The dog said, "I want to play too!"',
    "Unbelievable hippopotamus wandered through mountainous territories; Ben didn't like it at all.",
    "Zzyzx qqq xylophone jumped",
]


def ask(folder: Path, tmp_path: Path, texts: list[str], prompts: list[str], dtype: str = "f32") -> Answer:
    """Export a folder and ask llama.cpp."""
    out = export(folder, tmp_path / "out", runtime="gguf", dtype=dtype)
    return ask_llama_cpp(next(out.glob("*.gguf")), tmp_path, texts=texts, prompts=prompts, count=40)


def require_same_ids(tokenizer: Any, answer: Answer, texts: list[str]) -> None:
    """Text for text, with and without what stands around it."""
    around = [] if answer.bos is None else [answer.bos]
    for place, text in enumerate(texts):
        assert answer.ids[place] == tokenizer(text, add_special_tokens=False)["input_ids"], text
        assert [*around, *answer.special[place]] == tokenizer(text)["input_ids"], text


@pytest.mark.parametrize(
    ("name", "texts", "prompts"),
    [
        ("demo", [*TEXTS, *LEADING], ["def __init__(self", "import os\n", "class A"]),
        ("stories260K-hf", [*TEXTS, *LEADING], ["Once upon a time", "Lily and Ben"]),
        ("stories260K-mha-hf", [*TEXTS, *LEADING], ["Once upon a time", "Lily and Ben"]),
        ("aidreams230K-mha-hf", [*TEXTS, *LEADING], ["Neural networks", "A mind"]),
        ("tinystories-656k-hf", PLAIN, ["Once upon a time", "Lily and Ben"]),  # it has no other characters
    ],
)
def test_texts_are_those_of_transformers(
    name: str, texts: list[str], prompts: list[str], shared_models: Path, tmp_path: Path
) -> None:
    """Tokens of texts, and what the model goes on with, 40 tokens long."""
    folder = DEMO if name == "demo" else shared_models / name
    answer = ask(folder, tmp_path, texts, prompts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    require_same_ids(tokenizer, answer, texts)
    model = load_model(folder, "")
    assert answer.texts == [continued(model, tokenizer, prompt) for prompt in prompts]
    assert answer.eos == model.config.eos_token_id


def continued(model: Any, tokenizer: Any, prompt: str) -> str:
    """What a model goes on with, 40 tokens chosen greedily."""
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    made = model.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0)
    text: str = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    return text


@pytest.mark.parametrize("options", [{"gkv": 2}, {"gq": 2, "gkv": 4}, {"gq": 4}, {"kv_budget": "25%"}])
def test_a_conversion_is_served_as_it_is(options: dict[str, Any], tmp_path: Path) -> None:
    """Convert, export, generate: the same text from the grouped model and from llama.cpp."""
    grouped = convert(DEMO, tmp_path / "grouped", **options)
    prompts = ["def __init__(self", "import os\n"]
    answer = ask(grouped, tmp_path, [], prompts)
    model, tokenizer = load_model(grouped, ""), transformers.AutoTokenizer.from_pretrained(DEMO)
    assert answer.texts == [continued(model, tokenizer, prompt) for prompt in prompts]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("f32", 1e-5), ("f16", 5e-3), ("bf16", 1e-2), ("q8_0", 3e-2)]
)
def test_dtypes(dtype: str, tolerance: float, tmp_path: Path) -> None:
    """llama.cpp rounds what it multiplies with, too, so that even bfloat16 that stays so differs a little."""
    out = export(DEMO, tmp_path / "out", runtime="gguf", dtype=dtype)
    rows = transformers.AutoTokenizer.from_pretrained(DEMO)(TEXTS[1] * 5, return_tensors="pt").input_ids
    with torch.inference_mode():
        expected = load_model(DEMO, "")(rows).logits[0]
    (found,) = ask_llama_cpp(next(out.glob("*.gguf")), tmp_path, tokens=rows.tolist()).logits
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


def split(pattern: str) -> Any:
    """Text cut by a regular expression, then into bytes."""
    parts = [
        pre_tokenizers.Split(Regex(pattern), "isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return pre_tokenizers.Sequence(parts)


def by_words() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


@pytest.mark.parametrize(
    ("name", "cut", "ignore_merges"),
    [
        ("gpt-2", by_words(), False),
        ("gpt-2", split(byte_pairs._GPT2[0]), False),
        ("gpt-2", split(byte_pairs._GPT2[1]), False),
        (
            "starcoder",
            pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_words()]),
            False,
        ),
        ("llama-bpe", split(byte_pairs._LLAMA3), True),
        ("dbrx", split(byte_pairs._LLAMA3), False),
        ("qwen2", split(byte_pairs._QWEN2), False),
        ("tekken", split(byte_pairs._TEKKEN), True),
    ],
)
def test_ways_to_cut_texts(name: str, cut: Any, ignore_merges: bool, tmp_path: Path) -> None:
    """A tokenizer trained on this package; a wrong name shows in digits, cases and ends of lines."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = cut, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    code = [path.read_text() for path in sorted(Path(gqkva_convert.__file__).parent.rglob("*.py"))]
    tokenizer.train_from_iterator([*code, *TEXTS * 20], trainer)
    source = tiny_models.save(
        tiny_models.build("llama", "LlamaForCausalLM", vocab_size=1500), tmp_path / "source"
    )
    tokenizer.save(str(source / "tokenizer.json"))
    texts = [*TEXTS, *LEADING, "<|end|>x<|end|>", "ÀÉ Éa aÉ \u01c5 \u017f'S K", "e\u0301"]
    answer = ask(source, tmp_path, texts, [])
    report = json.loads((tmp_path / "out" / "gguf_report.json").read_text())
    assert report["tokenizer"]["pre"] == name
    assert [tokenizer.encode(text).ids for text in texts] == answer.special
