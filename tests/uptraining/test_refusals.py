"""What cannot be trained is refused in one line, with a documented exit code, before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import learners
import pytest
import transformers
from learners import Lesson
from PIL import Image
from small_disks import small_disk
from typer.testing import Result

Run = Callable[..., Result]
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def refused(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    # rich 13 leaves an empty line where a progress bar is not shown.
    said = filter(None, result.stderr.splitlines())
    lines = [line for line in said if not line.startswith(("step ", "note: "))]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


@pytest.fixture
def base(lesson: Lesson, tmp_path: Path) -> list[object]:
    fixed = ["--data", lesson.data, "--tokens", "1k", "--length", "16", "--batch-size", "4"]
    return ["uptrain", lesson.student, tmp_path / "out", *fixed]


def test_a_folder_that_is_no_conversion_is_refused(
    gqkva: Run, base: list[object], lesson: Lesson, tmp_path: Path
) -> None:
    base[1] = lesson.teacher
    refused(gqkva(*base), 3, "is no output of `gqkva convert`", "--any-model")
    base[1] = tmp_path
    refused(gqkva(*base), 3, "is not a checkpoint")
    base[1] = lesson.teacher
    assert gqkva(*base, "--any-model").exit_code == 0
    refused(gqkva(*base, "--any-model"), 7, "already exists")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--tokens", "some"], 12, ["tokens: write a number such as 500k or 20M"]),
        (["--seed", "9" * 20], 12, ["seed: Input should be less than 9223372036854775808"]),
        (["--set", "colour=red"], 12, ["no setting 'colour'"]),
        (["--set", "colour"], 12, ["give NAME=VALUE"]),
        (["--length", "65"], 11, ["sequences of 65 tokens: the model reads 64"]),
        (["--data", "nothing.txt"], 11, ["nothing.txt does not exist"]),
        (
            ["--batch-size", "6", "--per-device-batch-size", "4"],
            12,
            ["which per_device_batch_size 4 does not"],
        ),
        (
            ["--batch-size", "1000000000"],
            12,
            ["a step of 1,000,000,000 rows is more than 64 times the budget"],
        ),
        (["--stop-within", "1%"], 12, ["stop_within needs a teacher"]),
        (["--set", "resample=0.2"], 12, ["resample needs a teacher"]),
        (["--set", "augment=shift"], 12, ["augment changes images"]),
        (["--report-to", "nobody"], 12, ["accelerate does not start"]),
        (["--report-to", "wandb"], 12, ["--report-to wandb: its package is not installed"]),
        (["--mixed-precision", "fp16"], 12, ["a CPU does not train in fp16"]),
        (["--learning-rate", "inf"], 12, ["learning_rate: Input should be a finite number"]),
        (["--loss", "task=inf"], 12, ["loss.task: Input should be a finite number"]),
        (["--length", "1"], 12, ["length: Input should be greater than or equal to 2"]),
        (["--resume"], 12, ["leave out --data"]),
        (["--settings", "none.yaml"], 12, ["none.yaml: cannot be read: No such file"]),
        (["--mixed-precision", "fp7"], 12, ["mixed_precision: Input should be"]),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    options: list[str], code: int, words: list[str], gqkva: Run, base: list[object], tmp_path: Path
) -> None:
    refused(gqkva(*base, *options), code, *words)
    assert not (tmp_path / "out").exists()


def test_what_is_read_is_not_replaced(gqkva: Run, base: list[object], lesson: Lesson, tmp_path: Path) -> None:
    """Neither the teacher nor the data, whatever --overwrite says."""
    teacher = shutil.copytree(lesson.teacher, tmp_path / "teacher")
    base[2] = teacher
    refused(gqkva(*base, "--teacher", teacher, "--overwrite"), 7, "would replace", "which is read as teacher")
    base[2] = teacher / "inside"
    refused(gqkva(*base, "--teacher", teacher), 7, "lies inside")
    assert (teacher / "model.safetensors").read_bytes() == (lesson.teacher / "model.safetensors").read_bytes()
    (tmp_path / "texts").mkdir()
    base[2], base[4] = tmp_path / "texts", shutil.copy(lesson.data, tmp_path / "texts")
    refused(gqkva(*base, "--overwrite"), 7, "would replace", "which is read as data")


def test_a_run_that_cannot_begin_leaves_the_earlier_one(
    gqkva: Run, base: list[object], tmp_path: Path
) -> None:
    """A typing error after --overwrite costs nothing."""
    assert gqkva(*base).exit_code == 0
    before = (tmp_path / "out-run" / "metrics.jsonl").read_bytes()
    refused(gqkva(*base, "--overwrite", "--data", "typo.jsonl"), 11, "typo.jsonl does not exist")
    assert (tmp_path / "out-run" / "metrics.jsonl").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    base[2] = tmp_path / "other"
    refused(gqkva(*base, "--overwrite"), 7, "is not a checkpoint folder")
    assert not (tmp_path / "other-run").exists()


def test_weights_gone_bad_are_no_result(gqkva: Run, base: list[object], tmp_path: Path) -> None:
    """Neither a checkpoint nor a result is made of them; the last good checkpoint is named."""
    result = gqkva(*base, "--learning-rate", "1e38", "--set", "warmup_ratio=0", "--set", "save_steps=1")
    assert result.exit_code == 12, result.output
    assert "no checkpoint was written yet" in result.stderr
    assert not list((tmp_path / "out-run" / "checkpoints").glob("step-*"))
    short = ("--set", "nan_limit=99", "--overwrite")
    result = gqkva(*base, "--learning-rate", "1e38", "--set", "warmup_ratio=0", *short)
    assert result.exit_code == 12, result.output
    assert "no held-out loss was finite" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_damaged_run_folder_is_named(
    gqkva: Run, base: list[object], lesson: Lesson, tmp_path: Path
) -> None:
    run = tmp_path / "out-run"
    run.mkdir()
    for text in ('{"a": 1}', '{"settings": '):
        (run / "settings.json").write_text(text)
        refused(gqkva("uptrain", lesson.student, tmp_path / "out", "--resume"), 12, "damaged; start anew")


def test_texts_shorter_than_a_row_are_refused(gqkva: Run, base: list[object], tmp_path: Path) -> None:
    file = learners.write_texts(tmp_path / "short.jsonl", 1)
    refused(
        gqkva(*base, "--data", file, "--length", "64"),
        11,
        "of 64 tokens; give more data or a smaller --length",
    )
    file.write_text("")
    refused(gqkva(*base, "--data", file), 11, "is empty")


def test_records_without_texts_are_named(gqkva: Run, base: list[object], tmp_path: Path) -> None:
    """At the second try, too, when rows could have been kept from the first."""
    file = tmp_path / "odd.jsonl"
    for rows, said in (
        ('{"text": ""}\n{"text": " "}\n', "no row of 16 tokens (2 of 2 records hold no text)"),
        ('{"text": null, "foo": "a"}\n{"foo": "b"}\n', "no row of 16 tokens (no record holds text)"),
        (
            '{"text": 5}\n{"text": 6}\n',
            "text holds '5', which is no text; choose another column with --column",
        ),
    ):
        file.write_text(rows)
        for _ in range(2):
            refused(gqkva(*base, "--data", file), 11, said)
    file.write_text('{"text": "a"}\n{"text": "b\n')
    refused(gqkva(*base, "--data", file), 11, "line 2 is no JSON object", "mend or remove it")


def test_more_than_the_budget_is_said(gqkva: Run, base: list[object], lesson: Lesson, tmp_path: Path) -> None:
    """A step beyond it, or rows gone over again; and nothing where the budget is kept."""
    result = gqkva(*base, "--batch-size", "100")
    assert "note: a step reads 100 rows, 1,600 tokens: more than the budget" in result.stderr
    result = gqkva(*base, "--tokens", "16k", "--batch-size", "512", "--overwrite")
    report = json.loads((tmp_path / "out" / "gqkva_report.json").read_text())["uptraining"]
    rows, passes = report["distinct_rows"], 16 * report["steps"] * 512 / 16 / report["distinct_rows"]
    assert f"gives {rows} rows to train on, fewer than the budget: they are gone over" in result.stderr
    assert f"{passes:.1f} times" in result.stderr
    assert "budget" not in gqkva(*base, "--overwrite").stderr


@pytest.mark.usefixtures("plots")
def test_a_full_disk_is_one_line(gqkva: Run, base: list[object], lesson: Lesson, tmp_path: Path) -> None:
    """Torch's writer and safetensors' say it in errors of their own; with room, the run goes on."""
    with small_disk(tmp_path / "small", 2000) as small:
        run = small / "run"
        refused(gqkva(*base, "--run-folder", run), 7, f"cannot write {run}", "is the disk full?")
        assert list((run / "checkpoints").iterdir()) == []
    with small_disk(tmp_path / "smaller", 600) as smaller:
        place = ("uptrain", lesson.student, smaller / "out")
        result = gqkva(*place, *base[3:], "--run-folder", tmp_path / "run")
        refused(result, 7, f"cannot write {smaller / 'out'}", "No space left on device")
        assert list(smaller.iterdir()) == []
    again = gqkva("uptrain", lesson.student, tmp_path / "out", "--run-folder", tmp_path / "run", "--resume")
    assert again.exit_code == 0, again.stderr


@pytest.mark.usefixtures("plots")
def test_a_run_folder_that_went_away_costs_no_result(
    gqkva: Run, base: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gqkva_convert.uptraining.run_folder import RunFolder

    def clear(self: RunFolder) -> None:
        shutil.rmtree(self.path)

    monkeypatch.setattr(RunFolder, "clear_checkpoints", clear)
    result = gqkva(*base)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_pictures_of_another_size_are_refused(gqkva: Run, tmp_path: Path, shared_models: Path) -> None:
    """A processor that does not scale leaves them as they are."""
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(6):
            Image.new("L", (32, 32), number).save(tmp_path / "images" / label / f"{number}.png")
    model = ("pretrain", shared_models / "vit-fmnist-hf", tmp_path / "out", "--data", tmp_path / "images")
    refused(gqkva(*model, "--samples", "8", "--set", "batch_size=4"), 11, "images of 32 x 32 come out")


def test_a_teacher_of_another_kind_is_refused(
    gqkva: Run, base: list[object], lesson: Lesson, tmp_path: Path
) -> None:
    """Vocabulary, size, family, task."""
    wide = learners.make_decoder(tmp_path / "wide", hidden_size=64)
    refused(gqkva(*base, "--teacher", wide), 12, "has hidden_size 64, the student 32")
    small = learners.make_decoder(tmp_path / "small", vocab_size=4000)
    refused(gqkva(*base, "--teacher", small), 12, "has vocab_size 4000, the student 4096")
    renumbered = learners.renumber_words(learners.make_decoder(tmp_path / "renumbered"))
    refused(gqkva(*base, "--teacher", renumbered), 12, "has a tokenizer that numbers tokens otherwise")
    other = learners.make_decoder(tmp_path / "other", "gpt_neox")
    refused(gqkva(*base, "--teacher", other), 12, "has model_type gpt_neox, the student llama")
    refused(gqkva(*base, "--teacher", tmp_path), 3, "config.json")
    headless = tmp_path / "headless"
    transformers.LlamaModel.from_pretrained(lesson.teacher).save_pretrained(headless)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(lesson.teacher / name, headless / name)
    refused(gqkva(*base, "--teacher", headless), 12, "the teacher", "LlamaModel")


def test_a_tokenizer_of_another_model_is_refused(gqkva: Run, lesson: Lesson, tmp_path: Path) -> None:
    """Before its numbers meet embeddings that are not there."""
    small = learners.make_decoder(tmp_path / "small", vocab_size=300)
    place = ["uptrain", small, tmp_path / "out", "--any-model", "--data", lesson.data, "--tokens", "1k"]
    refused(gqkva(*place), 11, "token ", "is none of the 300 that the model embeds")


def test_kv_are_not_trained_alone_where_queries_are_in_the_same_weights(
    gqkva: Run, lesson: Lesson, tmp_path: Path
) -> None:
    fused = learners.make_decoder(tmp_path / "fused", "gpt_neox")
    place = ["uptrain", fused, tmp_path / "out", "--any-model", "--data", lesson.data, "--tokens", "1k"]
    refused(gqkva(*place, "--train", "kv"), 12, "GPTNeoXAttention holds queries, keys and values in one")
    assert gqkva(*place, "--train", "attention", "--length", "16").exit_code == 0


def test_a_run_is_neither_overwritten_nor_resumed_by_chance(
    gqkva: Run, base: list[object], lesson: Lesson, tmp_path: Path
) -> None:
    place = ["uptrain", lesson.student, tmp_path / "out"]
    refused(gqkva(*place, "--resume"), 12, "holds no run to go on with")
    assert gqkva(*base).exit_code == 0
    shutil.rmtree(tmp_path / "out")
    refused(gqkva(*base), 7, "holds a run; go on with it with --resume, or start anew with --overwrite")
    settings = tmp_path / "out-run" / "settings.json"
    stored = json.loads(settings.read_text())
    del stored["finished"]
    stored["files"]["model.safetensors"]["bytes"] += 1
    settings.write_text(json.dumps(stored))
    refused(gqkva(*place, "--resume"), 12, "is a run on other weights")
    assert gqkva(*base, "--overwrite").exit_code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    refused(gqkva(*base, "--overwrite", "--run-folder", tmp_path / "mine"), 7, "is not the folder of a run")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_damaged_checkpoint_is_named(
    gqkva: Run, base: list[object], lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And removing it lets the run go on from the one before."""
    from gqkva_convert.uptraining.engine.trainer import Trainer

    real = Trainer._step

    def step(self: Trainer) -> None:
        if self.progress.step == 7:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(Trainer, "_step", step)
    assert gqkva(*base, "--set", "save_steps=2").exit_code == 130
    monkeypatch.setattr(Trainer, "_step", real)
    last = sorted((tmp_path / "out-run" / "checkpoints").iterdir())[-1]
    weights = last / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    place = ["uptrain", lesson.student, tmp_path / "out", "--resume"]
    refused(gqkva(*place), 12, last.name, "is damaged", "--resume goes on from the one before")
    shutil.rmtree(last)
    assert gqkva(*place).exit_code == 0


def test_teachers_that_cannot_be_written_down_are_refused(gqkva: Run, lesson: Lesson, tmp_path: Path) -> None:
    base = [
        "teacher",
        lesson.teacher,
        tmp_path / "logits",
        "--data",
        lesson.data,
        "--tokens",
        "1k",
        "--length",
        "16",
    ]
    refused(gqkva(*base, "--top-k", "5000"), 12, "--top-k 5000: choose from 1 to 4096")
    refused(gqkva(*base, "--set", "streaming=true"), 12, "is not written down")
    assert gqkva(*base).exit_code == 0
    refused(gqkva(*base), 7, "already exists")
    run = [
        "uptrain",
        lesson.student,
        tmp_path / "out",
        "--data",
        lesson.data,
        "--tokens",
        "1k",
        "--length",
        "16",
    ]
    resampled = ("--teacher", tmp_path / "logits", "--matching", "0", "--set", "resample=0.2")
    refused(gqkva(*run, *resampled), 12, "resample needs the teacher, not its stored logits")
    (tmp_path / "logits" / "gqkva_teacher.json").write_text("{}")
    refused(gqkva(*run, "--teacher", tmp_path / "logits"), 12, "is damaged; run `gqkva teacher` again")


def test_a_batch_that_does_not_fit_says_what_to_do(
    gqkva: Run, base: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory, on a GPU or not."""
    import torch

    from gqkva_convert.uptraining.objectives.objective import Objective

    def full(self: Objective, *arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Objective, "forward", full)
    refused(gqkva(*base), 12, "does not fit", "--per-device-batch-size", "gradient_checkpointing")
