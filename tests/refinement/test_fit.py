"""Refined blocks are never worse on held-out data, and least squares leave nothing to gain."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import Result

from gqkva_convert import convert, verify
from gqkva_convert.calibration.data import DataSettings
from gqkva_convert.calibration.network import attention_blocks
from gqkva_convert.checkpoint.hub import locate
from gqkva_convert.data.python_library import iter_texts
from gqkva_convert.demo_model.demo import MODEL, held_out_windows
from gqkva_convert.evaluation.perplexity import language_loss, load_causal_lm
from gqkva_convert.heads import Variant
from gqkva_convert.plans.plan import make_plan
from gqkva_convert.refinement import layerwise
from gqkva_convert.refinement.attention_calls import observing, score_error
from gqkva_convert.refinement.calibrated import CalibratedModel
from gqkva_convert.refinement.fit import fit_output, group_errors, refine_block
from gqkva_convert.refinement.fitted import BlockLaboratory
from gqkva_convert.refinement.layerwise import FitSettings, fit_layer
from gqkva_convert.source.model import open_model
from gqkva_convert.steps.blocks import block_merges

Run = Callable[..., Result]
SETTINGS = FitSettings(steps=20, positions=512, check_every=5, trial_steps=0, epochs=0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the files that the built-in model was trained on."""
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    with file.open("w") as out:
        for number, (_, text) in enumerate(iter_texts(held_out=False)):
            if number % 5 == 0:
                out.write(json.dumps({"text": text[:8000]}) + "\n")
    return file


@pytest.fixture(scope="module")
def laboratory(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> BlockLaboratory:
    """Layer 1 of the built-in model at two key/value heads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GQKVA_CACHE", str(tmp_path_factory.mktemp("cache")))
        located = locate(str(MODEL), None)
        model = open_model(located.folder)
        settings = DataSettings(str(corpus), samples=24, length=128, batch_tokens=512)
        calibrated = CalibratedModel(located, model, settings)
        plan = make_plan(model, Variant(None, 2))
        with model.checkpoint.reader() as reader:
            merge = block_merges(model, plan)["self", 1]
            found = BlockLaboratory(merge, calibrated, reader, {("self", 1)})
            assert found.merged()
            assert found.learned.energy > 0
            assert found.held.energy > 0
    assert attention_blocks(calibrated.network)
    return found


def test_least_squares_leave_no_gradient(laboratory: BlockLaboratory) -> None:
    """Any other output projection is further from the original's output on what was fitted."""
    heads = laboratory.merged("closed-form")
    fitted = fit_output(heads, laboratory.learned, laboratory.held)
    error = laboratory.learned.error(fitted)
    assert error < laboratory.learned.error(heads)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-2):
        for _ in range(3):
            moved = {
                name: head + (name[0] == "output") * size * torch.randn(head.shape, generator=generator)
                for name, head in fitted.items()
            }
            assert laboratory.learned.error(moved) > error * (1 - 1e-3)


@pytest.mark.parametrize("steps", [("output",), ("layerwise",), ("layerwise", "output")])
def test_no_refinement_makes_a_block_worse(steps: tuple[str, ...], laboratory: BlockLaboratory) -> None:
    """Measured on inputs that nothing was fitted to; here all of them help."""
    heads = laboratory.merged("closed-form")
    refined, errors = refine_block(heads, laboratory.learned, laboratory.held, steps, SETTINGS)
    values = list(errors.values())
    assert values == sorted(values, reverse=True)
    assert laboratory.held.error(refined) == pytest.approx(values[-1], rel=1e-4)
    assert values[-1] < 0.9 * values[0]


def test_a_fit_that_runs_away_keeps_what_it_began_with(laboratory: BlockLaboratory) -> None:
    """A rate a thousand times too large."""
    heads = laboratory.merged("closed-form")
    wild = fit_layer(heads, laboratory.learned, laboratory.held, FitSettings(20, 512, 30.0, 5, epochs=0))
    assert all(torch.equal(wild[name], head) for name, head in heads.items())


def test_scores_can_be_matched_too(laboratory: BlockLaboratory) -> None:
    """With a weight for them, what heads look at comes nearer to the original than without."""
    heads = laboratory.merged("mean")
    errors = []
    for weight in (0.0, 1.0):
        settings = replace(SETTINGS, steps=40, scores=weight)
        fitted = fit_layer(heads, laboratory.learned, laboratory.held, settings)
        call = laboratory.held.calls[0]
        with torch.no_grad(), observing() as found:
            laboratory.network.attended(fitted, call)
            laboratory.network.attended(None, call)
        errors.append(float(score_error(*found)))
        assert laboratory.held.error(fitted) < laboratory.held.error(heads)
    assert errors[1] < 0.9 * errors[0]


def test_a_rate_that_runs_away_gives_way_to_a_smaller_one(laboratory: BlockLaboratory) -> None:
    """A short fit at each rate tells which; the fit is then the same as at that rate alone."""
    heads = laboratory.merged("closed-form")
    data = laboratory.learned, laboratory.held
    settings = FitSettings(steps=10, positions=512, rate=1.0, check_every=5, trial_steps=10, epochs=0)
    tried = fit_layer(heads, *data, settings)
    alone = fit_layer(heads, *data, replace(settings, rate=0.1, trial_steps=0))
    assert all(torch.equal(tried[name], head) for name, head in alone.items())
    assert laboratory.held.error(tried) < 0.95 * laboratory.held.error(heads)


def test_a_fit_to_very_few_sequences_runs(laboratory: BlockLaboratory) -> None:
    """More positions a step than there are: no sequence is drawn twice, and one alone is a batch."""
    heads = laboratory.merged("closed-form")
    few = laboratory.learned
    one = type(few)(few.network, few.calls[:1], laboratory.output)
    fit_layer(heads, one, laboratory.held, FitSettings(2, 10_000, 0.01, 1, epochs=0))


def test_a_fit_goes_over_its_data_often_enough(
    laboratory: BlockLaboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More data take more steps, few data the least number."""
    assert FitSettings(steps=1000, positions=2048, epochs=20).steps_over(65_536) == 1000
    assert FitSettings(steps=1000, positions=2048, epochs=20).steps_over(262_144) == 2560
    loss, used = layerwise._loss, []

    def noted(fitted: Any, data: Any, part: list[int], *more: Any) -> Any:
        used.extend(part)
        return loss(fitted, data, part, *more)

    monkeypatch.setattr(layerwise, "_loss", noted)
    settings = FitSettings(steps=2, positions=512, check_every=100, trial_steps=0, epochs=3)
    fit_layer(laboratory.merged("closed-form"), laboratory.learned, laboratory.held, settings)
    assert min(Counter(used)[number] for number in range(len(laboratory.learned.calls))) >= 3


def test_what_weights_alone_decide_is_recomputed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data that were given but decided nothing do not excuse a tensor from the proof."""
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "cache"))
    settings = DataSettings(str(corpus), samples=8, length=64)
    options: dict[str, Any] = {"merge": "closed-form-weights", "refine": "none", "calibration": settings}
    out = convert(MODEL, tmp_path / "out", gkv=4, **options)
    result = verify(out, MODEL)
    assert result["passed"]
    assert "16 computed, all equal to the byte" in str(result["checks"])


def test_errors_of_groups_are_those_of_their_heads(laboratory: BlockLaboratory) -> None:
    """A group whose heads are the original's own errs not at all."""
    heads = laboratory.merged("closed-form")
    errors = group_errors(heads, laboratory.original_outputs, laboratory.held)
    assert len(errors) == 2
    assert all(error > 0 for error in errors)
    silent = {name: torch.zeros_like(head) if name[0] == "output" else head for name, head in heads.items()}
    worse = group_errors(silent, laboratory.original_outputs, laboratory.held)
    assert all(ours < theirs for ours, theirs in zip(errors, worse, strict=True))


def test_a_calibrated_conversion_is_proven_and_better(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Auto rules and least squares by default; verify knows which tensors data have decided."""
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "cache"))
    settings = DataSettings(str(corpus), samples=32, length=128)
    out = convert(MODEL, tmp_path / "out", gkv=2, calibration=settings)
    result = verify(out, MODEL)
    assert result["passed"], [check for check in result["checks"] if not check["passed"]]
    assert "16 merged with calibration data" in str(result["checks"])
    report = json.loads((out / "gqkva_report.json").read_text())
    assert report["plan"]["merge"] == "auto"
    assert report["plan"]["refine"] == ["output"]
    assert report["plan"]["grouping"] == "loss"
    errors = report["calibration"]["held_out_error"]
    assert len(errors) == 4
    assert all(entry["output"] <= entry["merged"] for entry in errors.values())
    plain = convert(MODEL, tmp_path / "plain", gkv=2)
    windows = held_out_windows(4096)
    losses = [language_loss(load_causal_lm(folder), windows).nats_per_token for folder in (MODEL, out, plain)]
    assert losses[0] < losses[1] < losses[2]
    assert not list((tmp_path / "cache" / "fits").iterdir())
    again = convert(MODEL, tmp_path / "again", gkv=2, calibration=settings)
    one, two = (load_file(folder / "model.safetensors") for folder in (out, again))
    assert all(torch.equal(one[name], tensor) for name, tensor in two.items())
    tampered = load_file(out / "model.safetensors")
    tampered["model.layers.0.self_attn.o_proj.weight"][0, 0] += 1
    from safetensors.torch import save_file

    save_file(tampered, out / "model.safetensors", {"format": "pt"})
    assert not verify(out, MODEL)["passed"]


def test_an_interrupted_fit_goes_on(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks already fitted are not fitted again by the same command."""
    from gqkva_convert.refinement import fitted

    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "cache"))
    settings = DataSettings(str(corpus), samples=16, length=64)
    done: list[int] = []

    def refine(*arguments: Any) -> Any:
        if len(done) == 2:
            done.append(0)
            raise KeyboardInterrupt
        done.append(1)
        return refine_block(*arguments)

    monkeypatch.setattr(fitted, "refine_block", refine)
    options: dict[str, Any] = {"gkv": 4, "merge": "closed-form", "calibration": settings}
    with pytest.raises(KeyboardInterrupt):
        convert(MODEL, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "cache" / "fits").rglob("*.safetensors"))) == 2
    convert(MODEL, tmp_path / "out", **options)
    assert sum(done) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gkv", "4", "--refine", "output"], "--refine output fits to data: give --calibration"),
        (["--gkv", "4", "--merge", "auto"], "--merge auto compares rules on data"),
        (["--gkv", "4", "--grouping", "asym"], "--grouping asym compares heads on data"),
        (["--gkv", "4", "--calibration", "{corpus}", "--refine", "polish"], "no refinement 'polish'"),
        (["--gkv", "4", "--calibration", "{corpus}", "--refine", "output,none"], "no refinement 'none'"),
        (["--gkv", "4", "--calibration", "{corpus}", "--refine", ""], "no refinement ''"),
        (
            ["--gkv", "4", "--calibration", "{corpus}", "--merge", "mean", "--refine", "output"],
            "--refine goes on from a merge of whole blocks, which --merge mean is not",
        ),
        (["--gkv", "4", "--kv-budget", "50%"], "--kv-budget chooses the numbers of heads itself"),
        (["--gq", "2", "--gkv", "4", "--grouping", "key-norm"], "chooses key/value heads alone"),
        (["--gkv", "4", "--seed", "-1"], "give a number from 0 on"),
        (["--gkv", "4", "--calibration-samples", "9"], "go with --calibration"),
        (["--kv-budget", "7.9"], "write a share such as 25% or a number of heads"),
        (["--kv-budget", "half"], "write a share such as 25% or a number of heads"),
        (["--kv-budget", "5%"], "give 4 to 32, or 12.5% to 100%"),
    ],
)
def test_requests_that_contradict_themselves_are_refused(
    options: list[str], words: str, corpus: Path, tmp_path: Path, gqkva: Run
) -> None:
    """Before any data are looked at."""
    result = gqkva("convert", MODEL, tmp_path / "out", *[part.format(corpus=corpus) for part in options])
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("budget", ["50%", "12"])
def test_a_budget_divides_heads_over_layers(budget: str, tmp_path: Path, gqkva: Run) -> None:
    """No more heads than asked for, more where they matter; the folder proves and loads."""
    out = tmp_path / "out"
    result = gqkva("convert", MODEL, out, "--kv-budget", budget)
    assert result.exit_code == 0, result.output
    blocks = json.loads((out / "gqkva_report.json").read_text())["plan"]["blocks"]
    kept = sum(block["target"]["num_key_value_heads"] for block in blocks)
    assert kept <= (16 if budget == "50%" else 12)
    assert verify(out, MODEL)["passed"]
