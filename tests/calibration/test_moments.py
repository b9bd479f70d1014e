"""Sums over calibration data: what blocks really read, however the data are divided."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from typer.testing import Result

from gqkva_convert import convert
from gqkva_convert.architectures import FAMILIES
from gqkva_convert.calibration import cache
from gqkva_convert.calibration.cache import calibrated_moments, split_held_out
from gqkva_convert.calibration.data import DataSettings
from gqkva_convert.calibration.moments import Moments, collect
from gqkva_convert.calibration.network import attention_blocks, load_network
from gqkva_convert.demo_model.demo import MODEL
from gqkva_convert.errors import OtherProcessError, OutputError, WeightError

Tiny = Callable[[str], Path]


def text_batches(count: int, vocabulary: int = 37) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(vocabulary, (2, 7), generator=generator)} for _ in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_summed_up(family: str, tiny: Tiny) -> None:
    """Each block's own inputs, in float64, with a constant behind them; padding does not count."""
    model = load_network(tiny(family), 1, FAMILIES[family].architecture)
    inputs = tiny_models.inputs(model)
    if "input_ids" in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][0, 5:] = 0
    seen: dict[tuple[str, int], torch.Tensor] = {}
    blocks = attention_blocks(model)
    for place, block in blocks.items():

        def keep(module: object, args: tuple, kwargs: dict, place: tuple[str, int] = place) -> None:
            seen[place] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

        block.register_forward_pre_hook(keep, with_kwargs=True)
    moments = collect(model, [inputs])
    kinds = {attention.kind for attention in FAMILIES[family].attention}
    assert {kind for kind, _ in moments.query} == kinds
    assert set(moments.key) == {place for place in moments.query if place[0] == "cross"}
    for place, hidden in seen.items():
        rows = hidden.double()
        if "attention_mask" in inputs and place[0] in ("self", "encoder", "text"):
            rows = rows[inputs["attention_mask"].bool()]
        rows = rows.reshape(-1, rows.shape[-1])
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
        np.testing.assert_allclose(moments.query[place], (rows.T @ rows).numpy(), rtol=1e-9, atol=1e-9)


def test_parts_add_up_and_files_give_the_same(llama: Path, tmp_path: Path) -> None:
    """Statistics summed over shards are those of one pass."""
    model, batches = load_network(llama, 1, ""), text_batches(4)
    whole, first, second = collect(model, batches), collect(model, batches[:1]), collect(model, batches[1:])
    for place, total in whole.query.items():
        np.testing.assert_allclose(first.query[place] + second.query[place], total, rtol=1e-12)
    whole.save(tmp_path / "moments.safetensors")
    again = Moments.load(tmp_path / "moments.safetensors")
    assert again.batches == 4
    assert all(np.array_equal(again.query[place], total) for place, total in whole.query.items())


def test_an_interrupted_run_goes_on(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches already summed up are not run again, and the sums are those of an unbroken run."""
    from gqkva_convert.calibration import cache, network

    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "SAVE_SECONDS", -1.0)
    model, batches = load_network(llama, 1, ""), text_batches(5)
    calls = []

    def run(model: object, batch: object) -> None:
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        torch_run(model, batch)

    torch_run = network.run_batch
    monkeypatch.setattr(network, "run_batch", run)
    with pytest.raises(KeyboardInterrupt):
        calibrated_moments(lambda: model, batches, "key", progress=lambda _: None)
    found = calibrated_moments(lambda: model, batches, "key", progress=lambda _: None)
    assert len(calls) == 6
    expected = collect(model, batches)
    for place, total in expected.query.items():
        np.testing.assert_allclose(found.mean(place)[0], total / total[-1, -1], rtol=1e-12)

    def never() -> object:
        raise AssertionError("the model is loaded though everything is known")

    kept = calibrated_moments(never, batches, "key", progress=lambda _: None)
    for place in expected.query:
        assert np.array_equal(kept.mean(place)[0], found.mean(place)[0])
    assert [path.name for path in (tmp_path / "calibration").iterdir()] == ["key.safetensors"]


def test_something_is_always_held_out_and_never_learned_from() -> None:
    """Rules are compared on data that nothing was fitted to: one sample in eight, of one batch or of many."""
    for counts in ([1, 1], [20], [3, 3, 3, 3], [2] * 9):
        numbers = iter(range(100))
        batches = [
            {"input_ids": torch.tensor([[next(numbers)] * 3 for _ in range(count)])} for count in counts
        ]
        learned, held = split_held_out(batches)
        rows = [[int(row[0]) for batch in side for row in batch["input_ids"]] for side in (learned, held)]
        assert sorted(rows[0] + rows[1]) == list(range(sum(counts)))
        assert len(rows[1]) == max(1, sum(counts) // 8)
        assert rows[0]


@pytest.mark.slow
def test_two_processes_sum_up_what_one_does(llama: Path, tmp_path: Path) -> None:
    """Each takes its share of the batches, and only the main one goes on; each has a cache of its own."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, torch\n"
        "os.environ['GQKVA_CACHE'] += os.environ['RANK']\n"
        "from pathlib import Path\n"
        "from gqkva_convert.calibration.cache import calibrated_moments\n"
        "from gqkva_convert.calibration.network import load_network\n"
        "g = torch.Generator().manual_seed(0)\n"
        "batches = [{'input_ids': torch.randint(37, (2, 7), generator=g)} for _ in range(5)]\n"
        "load = lambda: load_network(Path(sys.argv[1]), 1, '')\n"
        "from gqkva_convert.errors import OtherProcessError\n"
        "try:\n"
        "    calibrated_moments(load, batches, 'key', progress=lambda _: None)\n"
        "    print('went on')\n"
        "except OtherProcessError:\n"
        "    print('did its share')\n"
    )
    for _ in ("summed up", "read again"):
        result = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", script, llama],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "GQKVA_CACHE": str(tmp_path / "cache")},
            timeout=200,
        )
        assert result.stdout.count("went on") == result.stdout.count("did its share") == 1
    found = Moments.load(tmp_path / "cache0" / "calibration" / "key.safetensors")
    expected = collect(load_network(llama, 1, ""), text_batches(5))
    for place, total in expected.query.items():
        np.testing.assert_allclose(found.query[place], total, rtol=1e-9)


def test_damaged_sums_are_made_again_and_a_cache_without_room_is_named(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a file from a full disk must not stop every later run."""
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path))
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / "key.safetensors").write_bytes(b"half")
    model, batches = load_network(llama, 1, ""), text_batches(2)
    found = calibrated_moments(lambda: model, batches, "key", progress=lambda _: None)
    assert ("self", 0) in found
    wanted = found.mean(("self", 0))[0]
    data = bytearray(found.file.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    found.file.write_bytes(data)
    again = calibrated_moments(lambda: model, batches, "key", progress=lambda _: None)
    np.testing.assert_array_equal(again.mean(("self", 0))[0], wanted)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="set GQKVA_CACHE to another folder"):
        calibrated_moments(lambda: model, batches, "key", progress=lambda _: None)


def test_a_model_that_overflows_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN must not reach the cache, nor an eigenvalue routine."""
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path))
    model = tiny_models.build("llama", "LlamaForCausalLM")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(WeightError, match="layer 1, self attention: the model gives NaN or infinity"):
        calibrated_moments(lambda: model, text_batches(2), "key", progress=lambda _: None)
    assert not list((tmp_path / "calibration").glob("key.safetensors"))


def test_other_settings_weights_or_configurations_have_other_keys(llama: Path) -> None:
    """Sums of one model must never serve another."""
    from gqkva_convert.calibration.cache import calibration_key
    from gqkva_convert.calibration.data import DataSettings

    settings, files = DataSettings("data"), sorted(llama.glob("*.safetensors"))
    base = calibration_key(settings, {"config": {"rope_theta": 1}}, files, text_batches(2))
    assert calibration_key(settings, {"config": {"rope_theta": 1}}, files, text_batches(2)) == base
    others = [
        calibration_key(DataSettings("data", seed=1), {"config": {"rope_theta": 1}}, files, text_batches(2)),
        calibration_key(settings, {"config": {"rope_theta": 2}}, files, text_batches(2)),
        calibration_key(settings, {"config": {"rope_theta": 1}}, files, text_batches(3)),
    ]
    data = bytearray(files[0].read_bytes())
    data[-1] ^= 1
    files[0].write_bytes(data)
    others.append(calibration_key(settings, {"config": {"rope_theta": 1}}, files, text_batches(2)))
    assert len({base, *others}) == 5


def test_a_process_that_has_done_its_share_ends_in_silence(
    gqkva: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line ends such a process as done; nothing is written, and a library user gets an error."""

    def done(*_: object, **__: object) -> None:
        raise OtherProcessError("this process has summed up its share of the calibration data")

    monkeypatch.setattr(cache, "calibrated_moments", done)
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("def function(argument): return argument\n" * 50)
    data = DataSettings(str(tmp_path / "text.txt"), samples=4, length=16)
    asked = ["--calibration", data.data, "--calibration-samples", 4, "--calibration-length", 16]
    result = gqkva("convert", MODEL, tmp_path / "out", "--gkv", 2, *asked)
    assert (result.exit_code, "error" in result.output) == (0, False), result.output
    assert not (tmp_path / "out").exists()
    with pytest.raises(OtherProcessError):
        convert(MODEL, tmp_path / "out", gkv=2, calibration=data)
