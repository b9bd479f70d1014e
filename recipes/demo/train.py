"""Train the language model that `gqkva demo` ships with.

    python recipes/demo/train.py --compile --out demo-model  # 2 cores: about 90 minutes

A Llama with 8 attention heads of 32 features and rotary positions, byte-level BPE of 4096, trained
on the training files of the standard library's sources (`gqkva_convert.data.python_library`). Writes a
bfloat16 Hugging Face checkpoint and `training.json` with the settings and the held-out loss.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gqkva_convert.data.python_library import iter_texts

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: list[str], vocab_size: int, length: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the training files alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, model_max_length=length
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Return all files as one stream of token ids, each file after an end-of-text token."""
    ids: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts):
        ids.append(tokenizer.eos_token_id)
        ids.extend(encoding.ids)
    return torch.tensor(ids, dtype=torch.long)


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, stream: Tensor, length: int, device: str) -> float:
    """Return the mean cross-entropy in nats per token over non-overlapping windows."""
    model.eval()
    windows = stream[: len(stream) // length * length].view(-1, length)
    total = 0.0
    for batch in windows.split(16):
        batch = batch.to(device)
        logits = model(input_ids=batch).logits[:, :-1].float()
        total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    model.train()
    return total / (windows.shape[0] * (length - 1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=31_000_000)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--intermediate-size", type=int, default=688)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--warmup-steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--stop-after-steps", type=int, default=0, help="stop early, to time a few steps")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train_texts = [text for _, text in iter_texts(held_out=False)]
    held_out_texts = [text for _, text in iter_texts(held_out=True)]
    tokenizer = train_tokenizer(train_texts, vocab_size=4096, length=args.length)
    stream, held_out = encode(tokenizer, train_texts), encode(tokenizer, held_out_texts)
    print(f"{len(stream):,} training tokens, {len(held_out):,} held out", flush=True)

    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        num_hidden_layers=args.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=32,
        max_position_embeddings=args.length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    config._attn_implementation = "eager"  # at this length faster to train on a CPU than SDPA's backward
    model = LlamaForCausalLM(config).to(args.device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters:,} parameters", flush=True)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.95),
        fused=True,
    )

    def loss_of(batch: Tensor) -> Tensor:
        with torch.autocast(args.device, dtype=torch.bfloat16):
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())

    compute_loss = torch.compile(loss_of) if args.compile else loss_of
    steps = args.tokens // (args.batch * args.length)
    generator = torch.Generator().manual_seed(args.seed)
    windows: list[Tensor] = []
    started = time.perf_counter()
    running = 0.0
    for step in range(steps):
        if len(windows) < args.batch:  # a new epoch: cut the stream at another offset, shuffle the windows
            offset = int(torch.randint(args.length, (1,), generator=generator))
            usable = (len(stream) - offset) // args.length * args.length
            cut = stream[offset : offset + usable].view(-1, args.length)
            windows = list(cut[torch.randperm(len(cut), generator=generator)])
        batch = torch.stack([windows.pop() for _ in range(args.batch)]).to(args.device)
        warm = min(1.0, (step + 1) / args.warmup_steps)
        rate = args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = compute_loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.perf_counter() - started
            speed = (step + 1) * batch.numel() / seconds
            left = (steps - step - 1) * batch.numel() / speed / 60
            print(
                f"step {step}/{steps} loss {running:.4f} {speed:,.0f} tokens/s {left:.0f} min left",
                flush=True,
            )
        if args.stop_after_steps and step + 1 == args.stop_after_steps:
            return
        if step % 500 == 499:
            print(
                f"step {step} held-out {held_out_loss(model, held_out, args.length, args.device):.4f}",
                flush=True,
            )

    seconds = time.perf_counter() - started
    model = model.to("cpu", torch.bfloat16).eval()
    held = held_out_loss(model.float(), held_out, args.length, "cpu")
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    record = {
        "script": "recipes/demo/train.py",
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
        "parameters": parameters,
        "training_tokens": steps * args.batch * args.length,
        "unique_training_tokens": len(stream),
        "held_out_tokens": len(held_out),
        "held_out_loss_nats_per_token": round(held, 4),
        "seconds": round(seconds),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2), flush=True)


if __name__ == "__main__":
    main()
