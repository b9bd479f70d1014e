"""Licences go along; one that forbids derived models is pointed out before anything is sent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
from hub_server import HubState
from typer.testing import Result

from gqkva_convert import convert
from gqkva_convert.description.licences import FoundLicence, duties, find_licence, notices, obstacle
from gqkva_convert.records.source_card import source_card

Run = Callable[..., Result]


@pytest.mark.parametrize("licence", ["cc-by-nd-4.0", "cc-by-nc-nd-4.0", "CC-BY-NC-ND-3.0"])
def test_no_derivatives_is_refused_until_checked(
    licence: str, hub: HubState, stock: Path, gqkva: Run
) -> None:
    """A converted model is a derived one."""
    path = stock / "gqkva_report.json"
    report = json.loads(path.read_text())
    report["source"]["card"] = {"license": licence}
    path.write_text(json.dumps(report))
    refused = gqkva("push", stock, "owner/name")
    assert refused.exit_code == 8
    assert "derived models must not be shared" in refused.stderr
    assert "--licence-checked" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert hub.requests == []
    assert gqkva("push", stock, "owner/name", "--licence-checked", "--dry-run").exit_code == 0


@pytest.mark.parametrize(
    ("licence", "name", "words"),
    [
        ({}, "x", "states no licence"),
        ({"license": "other"}, "x", "not one we know"),
        (
            {"license": "other", "license_name": "qwen", "license_link": "https://q"},
            "x",
            "read it at https://q",
        ),
        ({"license": "llama2"}, "x", "Notice file"),
        ({"license": "llama3"}, "my-llama-3", "must begin with 'Llama 3'"),
        ({"license": "llama3.1"}, "tiny", "must begin with 'Llama'"),
        ({"license": "gemma"}, "x", "use restrictions"),
        ({"license": "bigscience-bloom-rail-1.0"}, "x", "use restrictions"),
        ({"license": "cc-by-nc-4.0"}, "x", "no commercial use"),
        ({"license": ["mit", "gpl-3.0"]}, "x", "same licence"),
    ],
)
def test_duties_are_named(licence: dict[str, str], name: str, words: str, tmp_path: Path) -> None:
    """One line each, with the place that says so."""
    found = find_licence(licence, tmp_path)
    lines = duties(found, name)
    assert any(words in line for line in lines), lines
    assert obstacle(found) is None


@pytest.mark.parametrize("licence", ["apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc0-1.0"])
def test_free_licences_ask_for_nothing_here(licence: str, tmp_path: Path) -> None:
    """Warnings that are always there are not read."""
    assert duties(find_licence({"license": licence}, tmp_path), "x") == []


def test_llama_names_and_notices(tmp_path: Path) -> None:
    """Names may be spelt with spaces, hyphens or dots."""
    found = find_licence({"license": "llama3"}, tmp_path)
    assert len(duties(found, "Llama-3-8B-gqa")) == 1
    assert notices(found) == ["Built with Meta Llama 3"]
    assert obstacle(FoundLicence(("other",), "Acme No-Derivatives 1.0")) is not None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("                Apache License\n          Version 2.0, January 2004", "apache-2.0"),
        ("MIT License\n\nCopyright", "mit"),
        ("LLAMA 2 COMMUNITY LICENSE AGREEMENT", "llama2"),
        ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT", "llama3"),
        ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT", "llama3.1"),
        ("Gemma Terms of Use", "gemma"),
        ("Attribution-NoDerivatives 4.0 International", "other"),
        ("All rights reserved.", "other"),
    ],
)
def test_a_licence_is_known_by_its_file(text: str, found: str, tmp_path: Path) -> None:
    """Many folders have a LICENSE and no card."""
    (tmp_path / "LICENSE.txt").write_text(text)
    licence = find_licence(None, tmp_path)
    assert licence.ids == (found,)
    assert (obstacle(licence) is not None) == ("NoDerivatives" in text)


@pytest.mark.parametrize(
    "card",
    [
        b"",
        b"# no front matter",
        b"---\nlicense: [\n---\n",
        b"---\n- a\n---\n",
        b"---\nlicense: {a: 1}\nlanguage: 7\n---\n",
        b"\xff\xfe---",
        b"---\na: &a [x,x]\nb: &b [*a,*a]\nlicense: [*b, *b]\n---\n",
        b"---\n" + b"[" * 1500 + b"\n---\n",
        b"---\nlicense: !!python/object/apply:os.system ['false']\n---\n",
    ],
)
def test_a_bad_card_says_nothing_and_stops_nothing(card: bytes, tmp_path: Path) -> None:
    """Cards are written by strangers; a conversion needs none."""
    (tmp_path / "README.md").write_bytes(card)
    assert source_card(tmp_path) is None


def test_the_source_s_licence_survives_every_step(tmp_path: Path) -> None:
    """Convert, then convert again: the report still says whose licence it is, and what it was made from."""
    model = tiny_models.build("llama", "LlamaForCausalLM")
    source = tiny_models.save(model, tmp_path / "source")
    (source / "README.md").write_text("\ufeff---\r\nlicense: other\r\nlicense_name: acme\r\n---\r\n# x\r\n")
    first = convert(source, tmp_path / "first", gkv=2)
    second = convert(first, tmp_path / "second", gkv=1)
    shutil.rmtree(source)
    report = json.loads((second / "gqkva_report.json").read_text())
    assert report["source"]["card"] == {
        "license": "other",
        "license_name": "acme",
        "origin": {"name": str(source), "revision": None},
    }
