"""`gqkva bench`: what it measures is true, what it leaves is whole, what it cannot do it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from typer.testing import Result

from gqkva_convert import bench, convert, inspect
from gqkva_convert.evaluation.speed import results, run, timing
from gqkva_convert.evaluation.speed.rows import speedups
from gqkva_convert.records.bench import Row

Run = Callable[..., Result]
ROW = {
    "model": str,
    "context": int,
    "batch": int,
    "prefill_tokens_per_second": float,
    "samples_per_second": float,
    "time_to_first_token_seconds": float,
    "prefill_seconds_spread": list,
    "prefill_rounds": int,
    "prefill_chunk": int,
    "decode_tokens_per_second": float,
    "decode_seconds": float,
    "decode_seconds_spread": list,
    "decode_floor_seconds": float,
    "of_limit": float,
    "bytes_per_step": int,
    "kv_cache_bytes": int,
    "interleaved": bool,
}
QUICK = {"batch": (1, 2), "new_tokens": 3, "rounds": 2, "dtype": "float32", "device": "cpu"}
OPTIONS = ("--batch", "1,2", "--new-tokens", 3, "--rounds", 2, "--dtype", "float32", "--device", "cpu")


@pytest.fixture(autouse=True)
def _small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests measure how wide memory is in no time."""
    monkeypatch.setattr(timing, "_CPU_BUFFER", 2**16)


@pytest.fixture
def grouped(llama: Path, tmp_path: Path) -> Path:
    """The tiny Llama as GQKVA-2.3, which no stock model can hold."""
    return convert(llama, tmp_path / "grouped", gq=2, gkv=3, merge="mean")


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_cache_bytes_are_those_that_inspect_states(cache: str, llama: Path, grouped: Path) -> None:
    """A grouped model whose cache held a key for every head would be converted for nothing."""
    native = convert(llama, llama.parent / "native", gkv=2, merge="mean")
    for folder in (grouped, native):
        result = bench(folder, against=llama, context=(17, 40), cache=cache, save=False, **QUICK)
        per_token = {"converted": inspect(folder), "original": inspect(llama)}
        assert len(result["rows"]) == 8
        for row in result["rows"]:
            expected = per_token[row["model"]]["kv_cache_bytes_per_token"]
            assert row["kv_cache_bytes"] == expected * row["context"] * row["batch"]


def test_cache_bytes_of_an_encoder_decoder_count_both_caches(tiny: Callable[[str], Path]) -> None:
    """What the decoder keeps of the encoder is most of its cache."""
    folder = tiny("bart")
    facts = inspect(folder)
    result = bench(folder, context=(14,), save=False, **QUICK)
    assert result["settings"]["kind"] == "encoder-decoder"
    for row in result["rows"]:
        positions = 14 * facts["cross_cache_bytes_per_source_token"]
        positions += (1 + QUICK["new_tokens"]) * facts["kv_cache_bytes_per_token"]  # type: ignore[operator]
        assert row["kv_cache_bytes"] == row["batch"] * positions


def test_results_have_the_described_form_and_stay_in_the_folder(
    gqkva: Run, llama: Path, grouped: Path
) -> None:
    """Other programs read the file; a model card shows the picture."""
    made = gqkva("bench", grouped, "--against", llama, "--context", "20,50", *OPTIONS, "--json")
    assert made.exit_code == 0, made.output
    result = json.loads(made.stdout)
    assert json.loads((grouped / "gqkva_bench.json").read_text()) == result
    assert (grouped / "gqkva_bench.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (result["format_version"], result["device"], result["dtype"]) == (1, "cpu", "float32")
    assert (result["model"], result["against"]) == (str(grouped), str(llama))
    assert {"machine", "date", "versions", "settings", "bandwidth_bytes_per_second"} <= set(result)
    assert [(row["context"], row["batch"], row["model"]) for row in result["rows"]] == [
        (context, batch, model)
        for context in (20, 50)
        for batch in (1, 2)
        for model in ("converted", "original")
    ]
    for row in result["rows"]:
        assert row["skipped"] is None
        for name, kind in ROW.items():
            assert isinstance(row[name], kind), name
        assert row["decode_floor_seconds"] == row["bytes_per_step"] / result["bandwidth_bytes_per_second"]
        assert row["of_limit"] == row["decode_floor_seconds"] / row["decode_seconds"]
        first, third = row["decode_seconds_spread"]
        assert 0 < first <= row["decode_seconds"] <= third
    for entry in result["speedup"]:
        assert set(entry) == {"context", "batch", "prefill", "decode", "ideal", "of_ideal"}
    assert len(result["speedup"]) == 4


def test_the_table_shows_every_row_and_what_bytes_allow(gqkva: Run, llama: Path, grouped: Path) -> None:
    """A person reads the table, and may want the folder left alone."""
    made = gqkva("bench", grouped, "--against", llama, "--context", 20, *OPTIONS, "--no-save")
    assert made.exit_code == 0, made.output
    assert made.stdout.count("this model") == 2
    assert made.stdout.count(llama.name) >= 2
    assert "bytes moved allow" in made.stdout
    assert not list(grouped.glob("gqkva_bench*"))
    alone = gqkva("bench", grouped, "--context", 20, *OPTIONS, "--no-save")
    assert llama.name not in alone.stdout
    assert "bytes moved allow" not in alone.stdout


def test_speed_up_is_of_times_and_its_ideal_of_bytes() -> None:
    """Swapped, a slower model would look faster."""
    common = {"context": 5, "batch": 1, "skipped": None}
    fast = {"time_to_first_token_seconds": 2.0, "decode_seconds": 0.5, "bytes_per_step": 30}
    slow = {"time_to_first_token_seconds": 3.0, "decode_seconds": 0.75, "bytes_per_step": 60}
    rows = [Row(model="original", **common, **slow), Row(model="converted", **common, **fast)]
    (found,) = speedups(rows)
    assert found.to_dict() == {
        "context": 5,
        "batch": 1,
        "prefill": 1.5,
        "decode": 1.5,
        "ideal": 2.0,
        "of_ideal": 0.75,
    }
    assert speedups([rows[1], rows[0].model_copy(update={"skipped": "too large"})]) == []


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_models_that_generate_nothing_make_forward_passes(
    family: str, tiny: Callable[[str], Path], gqkva: Run, tmp_path: Path
) -> None:
    """An encoder has no cache and nothing to decode; its speed is in samples."""
    grouped = convert(tiny(family), tmp_path / "grouped", gq=2, gkv=3, merge="mean")
    result = bench(grouped, against=tiny(family), **QUICK)
    for row in result["rows"]:
        assert row["samples_per_second"] > 0
        assert row["kv_cache_bytes"] is row["decode_seconds"] is None
    assert all(entry["decode"] is None and entry["prefill"] > 0 for entry in result["speedup"])
    positions = {"bert": 20, "vit": 5}[family]
    assert {row["context"] for row in result["rows"]} == {positions}
    assert (grouped / "gqkva_bench.png").is_file()
    shown = gqkva("bench", grouped, *OPTIONS, "--no-save")
    assert shown.exit_code == 0, shown.output
    assert "samples/s" in shown.stdout


def test_a_second_run_replaces_the_first(llama: Path) -> None:
    """No copies pile up, and no scratch files stay."""
    bench(llama, context=(20,), **QUICK)
    bench(llama, context=(30,), **QUICK)
    assert {row["context"] for row in json.loads((llama / "gqkva_bench.json").read_text())["rows"]} == {30}
    assert sorted(path.name for path in llama.glob("*gqkva*")) == ["gqkva_bench.json", "gqkva_bench.png"]


@pytest.mark.parametrize("step", ["draw", "write_json"])
def test_an_interruption_leaves_the_old_results(
    step: str, llama: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a file would break whoever reads it next."""
    bench(llama, context=(20,), **QUICK)
    before = {path.name: path.read_bytes() for path in llama.iterdir()}

    def interrupted(*arguments: Any) -> None:
        for argument in arguments:
            if isinstance(argument, Path):
                argument.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(results, step, interrupted)
    stopped = gqkva("bench", llama, "--context", 30, *OPTIONS)
    assert stopped.exit_code == 130
    assert {path.name: path.read_bytes() for path in llama.iterdir()} == before


def test_results_do_not_go_along_with_a_conversion(llama: Path, tmp_path: Path) -> None:
    """They describe the source."""
    bench(llama, context=(20,), **QUICK)
    out = convert(llama, tmp_path / "out", gkv=2, merge="mean")
    assert not list(out.glob("gqkva_bench*"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["MODEL", "--context", "20,99"], 13, "--context 99: the model has 64 positions"),
        (["MODEL", "--context", "20", "--new-tokens", 20], 13, "--context 20 is too short"),
        (["MODEL", "--context", "long"], 13, "--context long: give whole numbers with commas between"),
        (["MODEL", "--batch", "1,,2"], 13, "--batch 1,,2: give whole numbers"),
        (["MODEL", "--batch", "0"], 13, "--batch 0: give different numbers of at least 1"),
        (["MODEL", "--batch", "2,2"], 13, "--batch 2,2: give different numbers"),
        (["MODEL", "--rounds", 0], 13, "--rounds 0: give at least 1"),
        (["MODEL", "--new-tokens", 0], 13, "--new-tokens 0: give at least 1"),
        (["MODEL", "--dtype", "int8"], 13, "--dtype int8: choose one of bfloat16, float16, float32"),
        (["MODEL", "--cache", "paged"], 13, "--cache paged: choose one of static, dynamic"),
        (["MODEL", "--device", "tpu"], 13, "--device tpu: choose auto, cpu, cuda or cuda:N"),
        (["MODEL", "--device", "cuda:77"], 13, "--device cuda:77: no such GPU here"),
        (["MODEL", "--attn-implementation", "magic"], 13, "does not load"),
        (["MODEL", "--against", "ENCODER", "--context", "20"], 13, "the two do different things"),
        (["IMAGES", "--context", "20"], 13, "every input of this model has 5 positions"),
        (["NOTHING"], 3, "is not a folder"),
        (["EMPTY"], 3, "config.json"),
    ],
)
def test_refusals_say_what_to_do(
    arguments: list[Any], code: int, message: str, llama: Path, tiny: Callable[[str], Path], gqkva: Run
) -> None:
    """One line and a code of its own; never a traceback, never half a measurement."""
    empty = llama.parent / "empty"
    empty.mkdir()
    places = {"MODEL": llama, "ENCODER": tiny("bert"), "IMAGES": tiny("vit"), "EMPTY": empty}
    places["NOTHING"] = llama.parent / "no" / "such" / "folder"
    refused = gqkva("bench", *(places.get(word, word) for word in arguments))
    assert refused.exit_code == code, refused.output
    assert message in refused.stderr
    said = refused.stderr.strip()  # old versions of rich end a progress bar with an empty line
    assert said.startswith("error: ")
    assert "\n" not in said
    assert not list(llama.glob("gqkva_bench*"))


def test_rows_that_do_not_fit_are_skipped_and_say_so(
    llama: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that swaps measures its disk."""
    free = 300_000
    monkeypatch.setattr(run, "available_bytes", lambda device: free)
    made = gqkva(
        "bench", llama, "--context", "20,60", "--batch", "1,500", *OPTIONS[2:], "--no-save", "--json"
    )
    assert made.exit_code == 0, made.output
    rows = {(row["context"], row["batch"]): row for row in json.loads(made.stdout)["rows"]}
    assert rows[20, 1]["skipped"] is None
    assert "beside the weights; 300.00 kB are free" in rows[60, 500]["skipped"]
    assert rows[60, 500]["decode_seconds"] is None
    shown = gqkva("bench", llama, "--context", "60", "--batch", "1,500", *OPTIONS[2:])
    assert "skipped: this model, context 60, batch 500: needs about" in shown.stdout
    kept = (llama / "gqkva_bench.json").read_bytes()
    nothing = gqkva("bench", llama, "--context", "60", "--batch", "500", *OPTIONS[2:])
    assert nothing.exit_code == 13
    assert "nothing could be measured: needs about" in nothing.stderr
    assert (llama / "gqkva_bench.json").read_bytes() == kept
    for file in llama.glob("gqkva_bench*"):
        file.unlink()
    free = 1000
    refused = gqkva("bench", llama, "--context", "20", *OPTIONS)
    assert refused.exit_code == 13
    assert "the weights take" in refused.stderr


def test_running_out_of_memory_costs_a_row_and_not_the_run(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An estimate can be wrong; an hour of other rows must not be lost to it."""
    measure = run.Run._measure

    def starved(self: run.Run, names: tuple[str, ...], context: int, *rest: Any) -> dict[str, Any]:
        if context == 40:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
        return measure(self, names, context, *rest)

    monkeypatch.setattr(run.Run, "_measure", starved)
    rows = bench(llama, context=(20, 40), save=False, **QUICK)["rows"]
    assert [row["skipped"] is None for row in rows] == [True, True, False, False]
    assert "ran out of memory" in rows[2]["skipped"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured_by_its_own_clock_and_allocator(tmp_path: Path) -> None:
    """Events, and peaks that hold weights and cache at least."""
    model = tiny_models.build("llama", "LlamaForCausalLM", head_dim=64, max_position_embeddings=4096)
    source = tiny_models.save(model, tmp_path / "source")
    out = convert(source, tmp_path / "out", gq=2, gkv=3, merge="mean")
    result = bench(out, against=source, context=(1024, 4096), batch=(1, 8), rounds=3, device="cuda")
    assert result["device"] == torch.cuda.get_device_name()
    for row in result["rows"]:
        assert row["skipped"] is None
        assert row["peak_memory_bytes"] > row["kv_cache_bytes"]
        assert 0 < row["of_limit"] < 1
