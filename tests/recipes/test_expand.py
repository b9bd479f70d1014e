"""Steps that are repeated over values: written out before anything runs, each with a name of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import learners
import pytest
from typer.testing import Result

from gqkva_convert.recipes.run import prepare

Run = Callable[..., Result]

TEXT = """
description: every variant, twice
needs: nothing
variables: {seeds: [0, 1]}
steps:
  - inspect: {model: m}
  - for:
      seed: "${seeds}"
      variant: {mha: , gqkva-2.3: {gq: 2, gkv: 3}}
    steps:
      - init: {architecture: vit, out: "${work}/${variant}-seed${seed}", gq: "${variant.gq}",
               gkv: "${variant.gkv}", seed: "${seed}"}
      - for: {share: [0.05]}
        steps:
          - convert: {model: "${work}/${variant}-seed${seed}", gkv: 2,
                      out: "${work}/${variant}-${share}-seed${seed}"}
"""


def lines(text: str, folder: Path, *changes: str) -> dict[str, str]:
    """Command lines by the names of their steps."""
    (folder / "r.yaml").write_text(text)
    found = prepare(folder / "r.yaml", changes, Path("w")).lines
    return {line.step.name: str(line) for line in found}


def test_every_combination_runs_in_the_order_written(tmp_path: Path) -> None:
    """The first name changes slowest; a key that an entry lacks leaves its option out."""
    found = lines(TEXT, tmp_path)
    assert list(found) == [
        "inspect",
        "init-0-mha",
        "convert-0-mha-0-05",
        "init-0-gqkva-2-3",
        "convert-0-gqkva-2-3-0-05",
        "init-1-mha",
        "convert-1-mha-0-05",
        "init-1-gqkva-2-3",
        "convert-1-gqkva-2-3-0-05",
    ]
    assert found["init-0-mha"] == "gqkva init vit w/mha-seed0 --seed 0"
    assert found["init-1-gqkva-2-3"] == "gqkva init vit w/gqkva-2.3-seed1 --gkv 3 --gq 2 --seed 1"
    assert found["convert-1-mha-0-05"] == "gqkva convert w/mha-seed1 w/mha-0.05-seed1 --gkv 2"


def test_changes_and_variables_may_use_variables(tmp_path: Path) -> None:
    """A value from outside is filled like one of the recipe; a variable may use those before it."""
    text = TEXT.replace("{seeds: [0, 1]}", "{seeds: [0], kind: vit, methods: {a: {arch: '${kind}'}}}")
    found = lines(text, tmp_path, "init.config=${work}/c.json", "init-0-mha.task=${kind}")
    assert found["init-0-mha"].endswith("--config w/c.json --task vit --seed 0")
    assert "--task" not in found["init-0-gqkva-2-3"]
    repeated = text.replace("variant: {mha: , gqkva-2.3: {gq: 2, gkv: 3}}", "variant: '${methods}'")
    repeated = repeated.replace("architecture: vit", "architecture: '${variant.arch}'")
    repeated = repeated.replace('"${variant.gq}"', "2").replace('"${variant.gkv}"', "3")
    assert lines(repeated, tmp_path)["init-0-a"] == "gqkva init vit w/a-seed0 --gkv 3 --gq 2 --seed 0"


def test_a_change_is_of_all_repetitions_or_of_one(tmp_path: Path) -> None:
    found = lines(TEXT, tmp_path, "seeds=[5]", "init.dtype=bfloat16", "init-5-mha.seed=7")
    assert len(found) == 5
    assert found["init-5-mha"] == "gqkva init vit w/mha-seed5 --seed 7 --dtype bfloat16"
    assert found["init-5-gqkva-2-3"].endswith("--seed 5 --dtype bfloat16")


@pytest.mark.parametrize(
    ("written", "instead", "message"),
    [
        ('"${seeds}"', "3", "for seed: write a list of values, or a mapping from names to mappings, found 3"),
        ('"${seeds}"', "[]", "for seed: write a list of values"),
        ('"${seeds}"', "[[1], [2]]", "for seed: write a list of values"),
        ('"${seeds}"', '"${sedes}"', "no variable 'sedes'; did you mean 'seeds'?"),
        ("      seed: ", "      seeds: ", "for seeds: there is a variable of that name"),
        ("      seed: ", "      Seed: ", "for Seed: names are lower-case letters, digits and _"),
        ('"${seeds}"', "[0.5, '0-5']", "two steps are called 'init-0-5-mha'"),
        ('"${seeds}"', "[1, 1]", "two steps are called 'init-1-mha'"),
        ('-seed${seed}", gq', '-seed", gq', "steps init-0-mha and init-1-mha both write"),
        ("{seeds: [0, 1]}", "{seeds: '${later}', later: [1]}", "variable seeds: no variable 'later'"),
        ("${variant.gq}", "${Variant.gq}", "${Variant.gq} is no reference; write ${name} or ${name.key}"),
        ("${variant.gq}", "${variant.gp}", "variant has no key 'gp'; did you mean 'gq'?"),
        ("${variant.gq}", "${seed.gq}", "seed has no key 'gq'"),
        ("  - for: {share", "  - fro: {share", "no command 'fro'"),
        ("    steps:\n      - init", "    stops:\n      - init", "no key 'stops'; did you mean 'steps'?"),
    ],
)
def test_wrong_repetitions_are_refused(
    written: str, instead: str, message: str, gqkva: Run, tmp_path: Path
) -> None:
    assert written in TEXT
    (tmp_path / "r.yaml").write_text(TEXT.replace(written, instead))
    result = gqkva("run", tmp_path / "r.yaml", "--dry-run")
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (14, 1), result.stderr
    assert message in result.stderr


def test_repetitions_run_and_are_compared(gqkva: Run, tmp_path: Path) -> None:
    """What is done is left out one by one; a comparison that reads them all runs when one of them changed."""
    source = learners.make_decoder(tmp_path / "mha")
    data = learners.write_texts(tmp_path / "texts.jsonl", 12)
    (tmp_path / "r.yaml").write_text(f"""
description: halves and quarters
needs: nothing
variables: {{sizes: [2, 1], length: 32}}
steps:
  - for: {{gkv: "${{sizes}}"}}
    steps:
      - convert: {{model: {source}, out: "${{work}}/models/gqa-${{gkv}}", gkv: "${{gkv}}"}}
      - evaluate: {{model: "${{work}}/models/gqa-${{gkv}}", data: {data}, length: "${{length}}"}}
  - compare: {{folders: ["${{work}}/models"], out: "${{work}}/compared"}}
""")

    def left_out(*changes: str) -> list[bool]:
        sets = [word for change in changes for word in ("--set", change)]
        result = gqkva("run", tmp_path / "r.yaml", "--work", tmp_path / "work", *sets, "--json")
        assert result.exit_code == 0, result.stderr
        return [step["left_out"] for step in json.loads(result.stdout)["steps"]]

    assert left_out("sizes=[2]") == [False] * 3
    assert left_out() == [True, True, False, False, False]
    assert left_out() == [True] * 5
    assert left_out("evaluate-1.length=16") == [True, True, True, False, False]
    rows = json.loads((tmp_path / "work" / "compared" / "comparison.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["gqa-2", "gqa-1"]
