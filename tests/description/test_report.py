"""The page says what is known, opens without a network, and runs nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import learners
import pytest
from typer.testing import Result

import gqkva_convert
from gqkva_convert.description.facts import Facts

Run = Callable[..., Result]
# Tags that have no end.
VOID = {"meta", "img", "br", "hr"}


class Page(HTMLParser):
    """Checks that tags close as they open, and gathers what a page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.fetched: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        found = dict(attrs)
        if tag == "img":
            self.images.append(found)
        self.fetched += [
            value or "" for name, value in attrs if name in ("src", "srcset", "data", "background")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture
def measured(tmp_path: Path, gqkva: Run) -> Path:
    """A conversion in which layers differ, measured against its source."""
    source = learners.make_decoder(tmp_path / "mha")
    out = gqkva_convert.convert(source, tmp_path / "gqa", kv_budget="75%")
    data = learners.write_texts(tmp_path / "texts.jsonl", 12)
    assert gqkva("evaluate", out, "--against", source, "--data", data, "--length", 32).exit_code == 0
    return out


def test_the_page_holds_what_was_measured(measured: Path, gqkva: Run) -> None:
    """Numbers of the measurement, pictures inside, files beside it."""
    result = gqkva("report", measured, "--json")
    assert result.exit_code == 0, result.stderr
    written = [Path(name).name for name in json.loads(result.stdout)["written"]]
    assert written == ["report.html", "report-heads.png", "report-quality.png", "report-sizes.png"]
    assert all((measured / name).read_bytes()[:4] == b"\x89PNG" for name in written[1:])
    text = (measured / "report.html").read_text()
    page = Page(text)
    assert len(page.images) == 3
    assert all(
        (image["src"] or "").startswith("data:image/png;base64,") and image["alt"] for image in page.images
    )
    assert not [address for address in page.fetched if not address.startswith("data:")]
    assert not {"script", "link", "iframe", "object"} & set(page.seen)
    assert "default-src 'none'" in text
    assert 'name="viewport"' in text
    (found,) = json.loads((measured / "gqkva_evaluation.json").read_text())["results"]
    value = next(metric["value"] for metric in found["metrics"] if metric["metric"] == "KL from the original")
    assert f"{value:.4g}" in text
    assert "Not verified" in text
    assert not list(measured.glob(".gqkva-report*"))


def test_what_was_not_measured_is_not_there(tmp_path: Path, gqkva: Run) -> None:
    source = learners.make_decoder(tmp_path / "mha")
    out = gqkva_convert.convert(source, tmp_path / "gqa", gkv=1)
    assert gqkva("verify", out, "--against", source).exit_code == 0
    (out / "report-quality.png").write_bytes(b"of other weights")
    assert gqkva("report", out).exit_code == 0
    text = (out / "report.html").read_text()
    assert "Not measured." in text
    assert "Not verified" not in text
    assert "<h2>Speed" not in text
    assert not (out / "report-quality.png").exists()


def test_errors_of_blocks_are_drawn_where_data_were_used(tmp_path: Path, gqkva: Run) -> None:
    """Layer by layer, as the conversion recorded them."""
    source = learners.make_decoder(tmp_path / "mha")
    data = learners.write_texts(tmp_path / "texts.jsonl", 24)
    out = gqkva_convert.convert(source, tmp_path / "gqa", gkv=1, calibration=str(data))
    facts = Facts(out, None)
    assert list(facts.block_errors()["self"]) == [0, 1]
    assert facts.block_errors()["self"][0]["output"] <= facts.block_errors()["self"][0]["merged"]
    assert gqkva("report", out).exit_code == 0
    assert (out / "report-errors.png").read_bytes()[:4] == b"\x89PNG"
    assert "on calibration data held out" in (out / "report.html").read_text()


def test_names_cannot_become_markup(measured: Path, gqkva: Run) -> None:
    """Whatever a report holds, the page shows it as text."""
    file = measured / "gqkva_report.json"
    report: dict[str, Any] = json.loads(file.read_text())
    report["source"]["name"] = "<script>alert(1)</script><img src=http://example.invalid/x>"
    file.write_text(json.dumps(report))
    assert gqkva("report", measured).exit_code == 0
    page = Page((measured / "report.html").read_text())
    assert "script" not in page.seen
    assert all(address.startswith("data:") for address in page.fetched)


def test_reports_do_not_travel(measured: Path, gqkva: Run, tmp_path: Path) -> None:
    """A page about one model would lie beside another."""
    assert gqkva("report", measured).exit_code == 0
    out = gqkva_convert.export(measured, tmp_path / "stock")
    assert not [path for path in out.iterdir() if path.name.startswith("report")]


@pytest.mark.parametrize(
    ("name", "text", "code", "message"),
    [
        ("gqkva_report.json", None, 9, "has no gqkva_report.json"),
        ("gqkva_evaluation.json", "{", 3, "gqkva_evaluation.json is not JSON"),
        ("gqkva_evaluation.json", "[]", 3, "is not what `gqkva evaluate` writes"),
    ],
)
def test_damage_is_one_line(
    name: str, text: str | None, code: int, message: str, measured: Path, gqkva: Run
) -> None:
    if text is None:
        (measured / name).unlink()
    else:
        (measured / name).write_text(text)
    result = gqkva("report", measured)
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    assert not (measured / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_is_as_wide_as_the_window(width: int, measured: Path, gqkva: Run, tmp_path: Path) -> None:
    """In headless Chromium, at a phone's width too: nothing hangs over but tables and code that scroll."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    assert gqkva("report", measured).exit_code == 0
    text = (measured / "report.html").read_text()
    probe = re.sub(r"<meta http-equiv[^>]*>", "", text).replace(
        "</body>",
        f"<iframe src='{measured / 'report.html'}' style='width:{width}px;height:900px'></iframe>"
        "<script>onload=()=>{const d=document.querySelector('iframe').contentDocument;"
        "document.title=d.documentElement.scrollWidth+' '+d.images.length+' '+"
        "[...d.images].every(i=>i.naturalWidth>0)}</script></body>",
    )
    (tmp_path / "probe.html").write_text(probe)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command = [
        browser,
        *options,
        "--virtual-time-budget=5000",
        "--dump-dom",
        f"file://{tmp_path / 'probe.html'}",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search(r"<title>(\d+) (\d+) (\w+)</title>", shown)
    assert title is not None
    assert (int(title[1]) <= width, int(title[2]), title[3]) == (True, 3, "true")
