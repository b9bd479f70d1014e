"""Help of arguments and options; their names, types and defaults are the public functions'."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import typer


@dataclass(frozen=True)
class Shown:
    """Help text of an option, and the placeholder of its value."""

    help: str
    metavar: str | None = None


# What every option that names data takes.
_DATA_KINDS = (
    "a txt, jsonl, csv or parquet file, a folder of them or of images, a Hub id, or wikitext, c4, stsb, "
    "cifar10, python-library; NAME:CONFIGURATION[SPLIT] where it has several"
)
_COLUMN = Shown(
    "Column of the data to read, or KNOWN=NAME such as prompt=Frage; give it several times. By default as "
    "docs/data.md says.",
    "NAME",
)


# By name; what one command says otherwise, by the command's name and its own.
_HELP: dict[str, str | Shown] = {
    "model": Shown("Checkpoint folder, Hub id, or built-in.", "MODEL"),
    "out": "Folder to write.",
    "revision": "Branch, tag or commit of a Hub id.",
    "gkv": "Key/value heads to keep: GQA, or MQA when 1.",
    "gq": "Query heads to keep: GKVA, or MKVA when 1; with --gkv GQKVA (GQ x GKV = heads).",
    "kv_budget": "Key/value heads of all layers together, as 25% or a number; each layer keeps as many as "
    "lose least.",
    "blocks": "Kinds of attention to convert, such as decoder (with cross-attention) or encoder,cross.",
    "merge": "How heads become one: closed-form, closed-form-weights, aligned, aligned-rescaled, auto, mean, "
    "first, norm-weighted or random; by default auto with --calibration, closed-form without.",
    "grouping": "Which heads become one: neighbour, random, weights, loss, key-norm, evolution, "
    "evolution-ec, and with --calibration activations, activations-raw, asym or asym-raw; by default loss "
    "with --calibration, neighbour without.",
    "refine": "Fit merged blocks to the original's: output, layerwise, both (with a comma) or none; by "
    "default output with --calibration.",
    "calibration": f"Data to run through the model: {_DATA_KINDS}.",
    "column": _COLUMN,
    "calibration_samples": "Sequences or images of --calibration; by default 128.",
    "calibration_length": "Tokens per sequence; by default 2048, or the model's maximum if that is less.",
    "dtype": "float32, bfloat16, float16 or float64; by default each tensor keeps its own.",
    "max_shard_size": "Largest output file, such as 2GB; by default as the source.",
    # Plan and convert.
    "plan.out": "Plan file to write; plots go into the folder of its name.",
    "plan.seed": "Seed of everything drawn at random; by default 0.",
    "plan.pictures": "Draw head similarities, groups and losses.",
    "plan.overwrite": "Replace the plan file and plots.",
    "convert.out": "Folder to write; by default MODEL's name and the variant, here.",
    "convert.plan": "A plan file that `gqkva plan` wrote, instead of what to plan.",
    "convert.seed": "Seed of everything drawn at random; by default 0.",
    "convert.overwrite": "Replace OUT once the new checkpoint is complete.",
    "convert.dry_run": "Show what would be done; write nothing.",
    # Measurements.
    "evaluate.against": "The model it was made from: a folder or Hub id.",
    "evaluate.data": f"Data to measure on: {_DATA_KINDS}.",
    "evaluate.split": "Part of the data; by default test, or validation.",
    "evaluate.tasks": "Tasks of lm-evaluation-harness, with commas: names, or YAML files.",
    "evaluate.num_fewshot": "Examples before each question; by default the task's.",
    "evaluate.samples": "Most windows, texts, pairs, images or questions; by default all.",
    "evaluate.length": "Tokens read at once; by default 2048, or the model's maximum if that is less.",
    "evaluate.stride": "Tokens predicted by each window; by default --length.",
    "evaluate.documents": "records: each is a text; joined: all are one; by default joined for wikitext and "
    "txt.",
    "evaluate.assistant_only_loss": "Measure on answers alone: an assistant's turns, completions.",
    "evaluate.batch_size": "Windows, texts, pairs or images in one forward pass; by default about 8192 "
    "tokens, or 32.",
    "evaluate.max_new_tokens": "Longest text that a sequence-to-sequence model writes.",
    "evaluate.seed": "Seed of what is drawn, and of intervals.",
    "evaluate.dtype": "auto (as stored), float32, bfloat16 or float16; by default float32 on a CPU, "
    "auto on a GPU.",
    "evaluate.device": "auto, cpu, cuda, or one GPU such as cuda:1.",
    "evaluate.save": "Keep the results in gqkva_evaluation.json in MODEL's folder.",
    "bench.model": Shown("Checkpoint folder, stock or grouped.", "DIR"),
    "bench.against": Shown("Folder or Hub id to measure beside it: the source.", "MODEL"),
    "bench.context": "Positions in the cache, with commas between them; by default 4096,32768, or as many as "
    "the model has.",
    "bench.batch": "Sequences at once.",
    "bench.new_tokens": "Tokens to generate in each round.",
    "bench.dtype": "bfloat16, float16 or float32.",
    "bench.device": "auto, cpu, cuda or cuda:N.",
    "bench.attn_implementation": "As transformers calls it.",
    "bench.cache": "static, allocated once, or dynamic, which grows by a copy at each token.",
    "bench.rounds": "Measurements of each number.",
    "bench.seed": "Seed of the tokens that are read.",
    "bench.save": "Leave gqkva_bench.json and .png in the folder.",
    "compare.folders": Shown("Checkpoint folders, or folders that hold some.", "DIR..."),
    "compare.metrics": "Metric, as `gqkva evaluate` names it; give it several times. By default the first of "
    "each data set.",
    "compare.size": "Horizontal axis of the plots: parameters, bytes or kv-cache.",
    "compare.out": "Folder for comparison.json, comparison.md and a plot per metric; by default none.",
    # Training.
    "settings": "YAML file of settings; options override it.",
    "data": f"What to train on: {_DATA_KINDS}.",
    "held_out": "Data to measure on; by default rows of --data that are not trained on.",
    "teacher": "The source model, or a folder of `gqkva teacher`.",
    "tokens": "Budget in tokens, such as 20M.",
    "samples": "Budget in rows: images, pairs of texts.",
    "alpha": "Budget as a share of --pretraining-tokens, such as 0.05.",
    "pretraining_tokens": "Tokens the source was trained on, such as 2T.",
    "num_train_epochs": "How often the budget's rows are gone over; by default once.",
    "length": "Tokens per row; by default 2048, or the model's maximum if that is less.",
    "batch_size": "Rows a step, of all processes; by default 32.",
    "per_device_batch_size": "Rows of one forward pass; the rest of a step is accumulated.",
    "learning_rate": "Highest learning rate; by default by the model's width.",
    "loss": "Terms and their weights, such as kl=1,task=0.5: task, kl, hidden, attention; by default kl with "
    "--teacher, task without.",
    "matching": "Share of the budget that first matches each attention block to the teacher's.",
    "train": "all, attention, kv or lora; by default all.",
    "mixed_precision": "no, bf16 or fp16; by default as accelerate is set up.",
    "stop_within": "Stop once the held-out loss is within this share of the teacher's, such as 1%.",
    "seed": "Seed of everything drawn at random.",
    "others": Shown("Any other setting of docs/training-settings.md; give it several times.", "NAME=VALUE"),
    "run_folder": "Folder of checkpoints and metrics; by default OUT with -run behind its name.",
    "resume": "Go on with the run in the run folder.",
    "overwrite": "Start from the beginning and replace an earlier run and its result.",
    "any_model": "Train a folder that is no output of gqkva, a Hub id, or built-in.",
    "report_to": "Tracker of Accelerate: tensorboard, wandb ...; give it several times.",
    "uptrain.folder": Shown("Output of `gqkva convert`.", "DIR"),
    "uptrain.out": "Folder to write; by default DIR with -uptrained.",
    "pretrain.folder": Shown("Output of `gqkva init`.", "DIR"),
    "pretrain.out": "Folder to write; by default DIR with -pretrained.",
    "teacher.top_k": "Tokens kept a position; all others count as one.",
    # Other forms of a model.
    "export.architecture": "deci: a Llama whose layers keep key/value heads of their own number, for "
    "llama.cpp; by default a stock architecture.",
    "export.runtime": "gguf: one file for llama.cpp, with the tokenizer; by default a checkpoint.",
    "export.dtype": "With --runtime gguf: f32, f16, bf16 or q8_0; by default as the source.",
    "export.overwrite": "Replace OUT once the new one is complete.",
    "init.architecture": Shown("Model type: vit, llama, gpt2, t5 ...", "ARCH"),
    "init.config": "JSON file with a stock configuration or some keys of it; defaults for the rest.",
    "init.task": "Stock model class; by default the family's usual one.",
    "init.tokenizer": "Folder or Hub id of a model whose tokenizer to take, or built-in.",
    "init.tokenizer_data": "Data to train a byte-level BPE tokenizer on, with the configuration's vocab_size "
    "entries.",
    "init.seed": "Seed of the weights.",
    "init.dtype": "float32, bfloat16 or float16.",
    "init.overwrite": "Replace OUT once the new model is complete.",
    "init.dry_run": "Only count parameters; write nothing.",
    # Proof, pages, the Hub.
    "verify.folder": Shown("Output of gqkva convert.", "DIR"),
    "verify.against": Shown("The source, to recompute every tensor from.", "MODEL"),
    "verify.layers": "Layers to run in the logit checks; by default as many as fit 2 GiB.",
    "report.folder": Shown("Output of `gqkva convert`.", "DIR"),
    "push.folder": Shown("Output of gqkva convert, verified.", "DIR"),
    "push.repo_id": Shown("Model repository on the Hub.", "USER/REPO"),
    "push.private": "Make the repository private.",
    "push.revision": Shown("Branch to push to; by default main.", "BRANCH"),
    "push.create_pr": "Open a pull request in a repository that exists.",
    "push.message": "Message of the commit.",
    "push.new_card": "Write a new model card over one that was edited.",
    "push.unverified": "Push what gqkva verify has not proven; the card says so.",
    "push.licence_checked": "Push although the source's licence seems to forbid derived models.",
    "push.dry_run": "Show what would be sent; nothing is asked of the Hub.",
    # Recipes and the demo.
    "run.recipe": Shown("The recipe.", "RECIPE.yaml"),
    "run.changes": "variable=value or step.option=value, in place of the recipe's; give it several times.",
    "run.work": "Folder of the results; by default runs/ and the recipe's name.",
    "run.begin_at": "Run this step again, and all behind it.",
    "run.dry_run": "Show the steps with sizes, time and memory; run and download nothing.",
    "run.here": "Reckon --dry-run with this machine, not with the GPUs that the recipe asks for.",
    "demo.gkv": "Key/value heads to convert to; give it several times.",
    "demo.merge": "How heads become one, as for convert; give it several times.",
    "demo.tokens": "About how many held-out tokens to measure on.",
    "demo.uptrain_tokens": "Tokens to train the conversion nearest to a quarter of the heads on; or 0.",
}

# Every command has it besides its function's parameters.
JSON = inspect.Parameter(
    "as_json",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--json", help="Print the result as JSON.")],
)


def help_of(command: str, name: str) -> Shown:
    """Return how an option of a command is shown."""
    found = _HELP.get(f"{command}.{name}") or _HELP[name]
    return Shown(found) if isinstance(found, str) else found
