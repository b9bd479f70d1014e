"""Pictures: changed at random while training, by the number of their row alone; never while measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import gqkva_convert
from gqkva_convert.errors import TrainingError
from gqkva_convert.uptraining.rows.batches import StepPlan
from gqkva_convert.uptraining.rows.images import ImageBatches
from gqkva_convert.uptraining.settings import TrainingSettings

pytest.importorskip("kornia")
COLUMNS = ("img", "label")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vit")
    (path / "c.json").write_text('{"image_size": 32, "patch_size": 8, "hidden_size": 48}')
    gqkva_convert.init("vit", path / "vit", config=path / "c.json")
    return path / "vit"


def bars(count: int) -> list[dict[str, Any]]:
    """A light bar a little left of the middle, before black and grey in turn, with labels in turn."""
    grounds = [Image.new("RGB", (32, 32), (shade,) * 3) for shade in (0, 90)]
    for ground in grounds:
        ground.paste((255, 255, 255), (12, 12, 16, 20))
    return [{"img": grounds[number % 2], "label": number % 10} for number in range(count)]


def test_pictures_are_shifted_and_mirrored(folder: Path) -> None:
    """By an eighth at most; about half of them mirrored."""
    pixels = ImageBatches(folder, COLUMNS, 10, "shift").batch(bars(1) * 64, range(64))["pixel_values"]
    light = (pixels[:, 0] + 1) / 2
    places = torch.arange(32.0) + 0.5
    down = (light.sum(2) * places).sum(1) / light.sum((1, 2))
    across = (light.sum(1) * places).sum(1) / light.sum((1, 2))
    assert float((down - 16).abs().max()) <= 4.01
    assert float((down - 16).abs().max()) > 2
    # The bright bar stands left of the middle; mirrored it stands right of it.
    offset = torch.minimum((across - 14).abs(), (across - 18).abs())
    assert float(offset.max()) <= 4.01
    assert 16 < int((across > 16).sum()) < 48


CHANGES = [
    {"augment": "shift"},
    {"augment": "randaugment"},
    {"mixup": 0.8},
    {"augment": "randaugment", "mixup": 0.8},
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_happens_to_a_picture_is_drawn_by_its_number(change: dict[str, Any], folder: Path) -> None:
    """Alike in every division of a step and with any number of threads, otherwise in the next epoch."""
    rows = bars(12)
    batches = ImageBatches(folder, COLUMNS, 10, **change)
    whole = batches.batch(rows, range(12))
    for per_device, processes in ((6, 2), (2, 3)):
        plan = StepPlan(12, per_device, processes)
        parts = [
            batches.batch([rows[number] for number in numbers], numbers)
            for passed in range(plan.accumulation)
            for numbers in (plan.numbers(0, passed, process) for process in range(processes))
        ]
        for name in whole:
            torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name])
    again = batches.batch(rows, range(12, 24))
    assert not whole["pixel_values"].equal(again["pixel_values"])
    threads = ImageBatches(folder, COLUMNS, 10, **change, workers=5)
    torch.testing.assert_close(threads.batch(rows, range(12)), whole)


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_changed_while_measuring(change: dict[str, Any], folder: Path) -> None:
    measured = ImageBatches(folder, COLUMNS, 10, **change).batch(bars(4))
    plain = ImageBatches(folder, COLUMNS, 10).batch(bars(4), range(4))
    assert measured["pixel_values"].equal(plain["pixel_values"])
    assert measured["labels"].tolist() == plain["labels"].tolist() == [0, 1, 2, 3]


def test_mixed_pictures_come_two_by_two(folder: Path, tmp_path: Path) -> None:
    """An odd number has one without a partner: refused before anything is trained; an even one trains."""
    for number, row in enumerate(bars(24)):
        label = tmp_path / "images" / str(number % 2)
        label.mkdir(parents=True, exist_ok=True)
        row["img"].save(label / f"{number}.png")
    wanted = {"data": str(tmp_path / "images"), "samples": 8, "mixup": 0.2, "augment": "randaugment"}
    odd = TrainingSettings(**wanted, batch_size=4, per_device_batch_size=1)
    with pytest.raises(TrainingError, match="mixup mixes images two by two, and a pass has 1 rows"):
        gqkva_convert.pretrain(folder, tmp_path / "odd", odd)
    assert not (tmp_path / "odd").exists()
    even = TrainingSettings(**wanted, batch_size=4, per_device_batch_size=2)
    assert gqkva_convert.pretrain(folder, tmp_path / "out", even)["steps"] == 2
