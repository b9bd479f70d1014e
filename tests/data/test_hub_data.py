"""Data sets of the Hub by their short names, from a server that holds what the Hub holds, in miniature."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import learners
import numpy as np
import pytest
from hub_server import HubState, hub_environment, running_hub

from gqkva_convert.data.records import KNOWN

LINES = ["", " = Robert = \n", " Robert is an actor . He had a role in a series .\n"] * 12
FIRST = """
import json
from gqkva_convert.data.records import KNOWN, load_records
found = {}
for name in KNOWN:
    for part in ("train", "test"):
        for streaming in (True, False):
            record = next(iter(load_records(name, streaming=streaming, part=part)))
            found[f"{name} {part} {streaming}"] = {key: str(value) for key, value in record.items()}
print(json.dumps(found))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubState]:
    with running_hub() as state:
        for name, (repository, _, _) in KNOWN.items():
            folder = tmp_path / name
            folder.mkdir()
            _MAKERS[name](folder)
            state.add(f"datasets/{repository}", folder)
        yield state


def _wikitext(folder: Path) -> None:
    """Two configurations, parquet files named by part."""
    configurations = ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
    for configuration in configurations:
        for part in ("train", "test"):
            (folder / configuration).mkdir(exist_ok=True)
            _parquet(folder / configuration / f"{part}-00000-of-00001.parquet", text=[f"{part}\n", *LINES])
    _card(folder, {name: {part: f"{name}/{part}-*" for part in ("train", "test")} for name in configurations})


def _c4(folder: Path) -> None:
    """Compressed JSON lines."""
    files = {"train": "c4-train", "validation": "c4-validation"}
    for language in ("en", "realnewslike"):
        (folder / language).mkdir()
        for part, file in files.items():
            with gzip.open(folder / language / f"{file}.00000-of-00001.json.gz", "wt") as out:
                out.write(json.dumps({"text": f"{part} {language}", "timestamp": "", "url": ""}) + "\n")
    _card(
        folder,
        {
            language: {part: f"{language}/{file}.*.json.gz" for part, file in files.items()}
            for language in ("en", "realnewslike")
        },
    )


def _stsb(folder: Path) -> None:
    """No card says where the parts are: their names do."""
    (folder / "data").mkdir()
    for part in ("train", "validation", "test"):
        pairs = {"sentence1": [f"{part} a"] * 3, "sentence2": ["b", "c", "d"], "score": [0.0, 0.5, 1.0]}
        _parquet(folder / "data" / f"{part}-00000-of-00001.parquet", **pairs)


def _cifar10(folder: Path) -> None:
    """Images and named labels."""
    import datasets
    from PIL import Image

    (folder / "plain_text").mkdir()
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    for part in ("train", "test"):
        shades = [Image.fromarray(np.full((32, 32, 3), shade, dtype=np.uint8)) for shade in (10, 200)]
        made = datasets.Dataset.from_dict({"img": shades, "label": [0, 1]}, features=features)
        made.to_parquet(folder / "plain_text" / f"{part}-00000-of-00001.parquet")
    _card(folder, {"plain_text": {part: f"plain_text/{part}-*" for part in ("train", "test")}})


def _parquet(path: Path, **columns: list[object]) -> None:
    import datasets

    datasets.Dataset.from_dict(columns).to_parquet(path)


def _card(folder: Path, configurations: dict[str, dict[str, str]]) -> None:
    described = [
        {"config_name": name, "data_files": [{"split": part, "path": path} for part, path in parts.items()]}
        for name, parts in configurations.items()
    ]
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': described})}\n---\n# A data set\n")


_MAKERS = {"wikitext": _wikitext, "c4": _c4, "stsb": _stsb, "cifar10": _cifar10}


def _run(hub: HubState, home: Path, *words: object) -> str:
    environment = {**os.environ, **hub_environment(hub, home), "GQKVA_CACHE": str(home / "gqkva")}
    shown = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_every_short_name_reads_its_data_set(hub: HubState, tmp_path: Path) -> None:
    """The right configuration and part, streamed or prepared on disk, in columns that commands read."""
    found = json.loads(_run(hub, tmp_path / "home", "-c", FIRST))
    for streaming in (True, False):
        for part in ("train", "test"):
            assert found[f"wikitext {part} {streaming}"]["text"] == f"{part}\n"
            assert found[f"stsb {part} {streaming}"]["sentence1"] == f"{part} a"
            assert set(found[f"cifar10 {part} {streaming}"]) == {"img", "label"}
        assert found[f"c4 train {streaming}"]["text"] == "train en"
        assert found[f"c4 test {streaming}"]["text"] == "validation en"
    assert not any("wikitext-103-raw-v1/" in name for name in hub.sent), "the other configuration was read"


@pytest.mark.slow
def test_commands_read_short_names(hub: HubState, tmp_path: Path) -> None:
    """As the first example of the documentation: convert by WikiText-2, measure on it."""
    source, made = learners.make_decoder(tmp_path / "mha"), tmp_path / "gqa"
    calibration = ("--calibration", "wikitext", "--calibration-samples", "2", "--calibration-length", "16")
    command = ("-m", "gqkva_convert")
    _run(hub, tmp_path / "home", *command, "convert", source, made, "--gkv", "2", *calibration)
    measured = ("--against", source, "--data", "wikitext", "--length", "32", "--json")
    (result,) = json.loads(_run(hub, tmp_path / "home", *command, "evaluate", made, *measured))
    assert result["data"] == "wikitext"
    assert {metric["metric"] for metric in result["metrics"]} >= {"perplexity", "top-1 agreement"}
