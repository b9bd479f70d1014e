"""Recipes: checked before anything runs, run once, gone on with, made again by their log."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_server import running_hub, use_hub
from typer.testing import Result

import gqkva_convert
from gqkva_convert.checkpoint.folder import open_checkpoint
from gqkva_convert.errors import RecipeError, VerificationError
from gqkva_convert.recipes.run import prepare
from gqkva_convert.recipes.schema import Recipe

Run = Callable[..., Result]
ROOT = Path(__file__).parents[2]
RECIPES = sorted(
    path
    for path in (ROOT / "recipes").rglob("*.yaml")
    if path.parent.name not in ("accelerate", "uptrain", "training")
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_is_valid_and_dry_runs(
    path: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without network: sizes are then those that the recipe assumes; nothing is written."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(ROOT)
    work = tmp_path / "work"
    result = gqkva("run", path, "--dry-run", "--json", "--work", work)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    known = [step for step in found["steps"] if step["memory_bytes"] or step["seconds"]]
    assert known
    assert all("not known" not in step["note"] for step in found["steps"])
    assert not work.exists()
    here = gqkva("run", path, "--dry-run", "--here", "--work", work)
    assert (here.exit_code, "this CPU" in here.stdout) == (0, not torch.cuda.is_available())


@pytest.mark.slow
def test_the_demo_recipe_runs_from_a_model_to_its_measurements(gqkva: Run, tmp_path: Path) -> None:
    """The whole path, as a newcomer runs it; training makes the conversion better."""
    small = ("--set", "tokens=8k", "--set", "samples=24")
    result = gqkva("run", ROOT / "recipes" / "demo.yaml", "--work", tmp_path / "work", *small, "--json")
    assert result.exit_code == 0, result.stderr
    losses = []
    for name in ("gqa", "uptrained"):
        (measured,) = json.loads((tmp_path / "work" / name / "gqkva_evaluation.json").read_text())["results"]
        losses.append(next(m for m in measured["metrics"] if m["metric"] == "nats per token"))
    assert losses[1]["difference"] < 0.8 * losses[0]["difference"]
    assert losses[1]["difference_interval"][1] < losses[0]["difference_interval"][0]
    log = (tmp_path / "work" / "commands.sh").read_text()
    assert log.count("\ngqkva ") == len(json.loads(result.stdout)["steps"])


MANY = list(range(200))


def growing(first: str, form: str, between: str) -> str:
    """Nine variables, each of 99 times the one before."""
    variables = [f"a0: {first}"]
    for number in range(1, 9):
        before = f"${{a{number - 1}}}" if between == "" else f"'${{a{number - 1}}}'"
        variables.append(f"a{number}: {form.format(between.join([before] * 99))}")
    listed = "".join(f"  {variable}\n" for variable in variables)
    return f"description: x\nneeds: y\nvariables:\n{listed}steps: [{{inspect: {{model: m}}}}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no recipe: it holds no mapping"),
        ("- a\n- b\n", "is no recipe: it holds no mapping"),
        ("steps: [", "not YAML"),
        ("a: 1\na: 2\n", "'a' stands there twice"),
        ("!!python/object/apply:os.system ['true']\n", "not YAML"),
        ("descripton: x\nneeds: y\nsteps: [inspect]\n", "no key 'descripton'; did you mean 'description'?"),
        ("needs: y\nsteps: [{inspect: {model: m}}]\n", "description: field required"),
        ("description: x\nneeds: y\n", "steps are a list of commands"),
        (
            "description: x\nneeds: y\nsteps: [{convrt: {}}]\n",
            "step 1: no command 'convrt'; did you mean 'convert'?",
        ),
        ("description: x\nneeds: y\nsteps: [{run: {}}]\n", "no command 'run'"),
        (
            "description: x\nneeds: y\nsteps: [{convert: {}, verify: {}}]\n",
            "a step is one command, found convert, verify",
        ),
        ("description: x\nneeds: y\nsteps: [{convert: 5}]\n", "the options of convert are a mapping"),
        (
            "description: x\nneeds: y\nsteps: [{convert: {model: m, out: o, gvk: 2}}]\n",
            "step convert: convert has no option 'gvk'; did you mean 'gkv'?",
        ),
        ("description: x\nneeds: y\nsteps: [{convert: {model: m, out: o, gkv: two}}]\n", "step convert: "),
        ("description: x\nneeds: y\nsteps: [{convert: {out: o, gkv: 2}}]\n", "convert needs model"),
        ("description: x\nneeds: y\nsteps: [{convert: {model: m, gkv: 2}}]\n", "step convert: give out"),
        (
            "description: x\nneeds: y\nsteps: [{convert: {model: m, out: o, overwrite: true}}]\n",
            "overwrite is not set in recipes; a recipe replaces what it made itself",
        ),
        ("description: x\nneeds: y\nsteps: [{inspect: {model: '${mode}'}}]\n", "no variable 'mode'"),
        (
            "description: x\nneeds: y\nsteps: [{convert: {model: m, out: o, gkv: 2, dry_run: true}}]\n",
            "a dry run writes nothing; leave dry_run out",
        ),
        (
            "description: x\nneeds: y\nsteps: [{name: a, inspect: {model: m}}, {name: a, demo: {}}]\n",
            "two steps are called 'a'",
        ),
        ("description: x\nneeds: y\nsteps: [{name: A b, inspect: {model: m}}]\n", "step 1: name: "),
        (
            "description: x\nneeds: y\nsteps: [{evaluate: {model: m, data: d, samples: 0}}]\n",
            "step evaluate: --samples 0: at least 1",
        ),
        (
            "description: x\nneeds: y\nsteps: [{bench: {folder: m, context: 5000, batch: 0}}]\n",
            "step bench: --batch 0: give different numbers of at least 1",
        ),
        (
            "description: x\nneeds: y\nsteps: [{bench: {folder: m, context: '1k'}}]\n",
            "step bench: --context 1k: give whole numbers",
        ),
        (
            "description: x\nneeds: y\nsteps: [{export: {model: m, out: o, runtime: foo}}]\n",
            "step export: no runtime 'foo' to export for",
        ),
        (
            "description: x\nneeds: y\nsteps: [{push: {folder: m, repo_id: 'not a name'}}]\n",
            "step push: not a name is no name a Hub repository can have",
        ),
        (
            "description: x\nneeds: y\nsteps: [{push: {folder: m, repo_id: me/x, create_pr: true, "
            "revision: y}}]\n",
            "step push: a pull request goes to the main branch",
        ),
        (
            "description: x\nneeds: y\nsteps: [{uptrain: {folder: m, out: o, data: d, tokens: 1k, "
            "others: {weight_decai: 1}}}]\n",
            "step uptrain: no setting 'weight_decai'; did you mean weight_decay?",
        ),
        (
            "description: x\nneeds: y\nsteps: [{uptrain: {folder: m, out: o, data: d, loss: {kl: 1}, "
            "tokens: 1k}}]\n",
            "step uptrain: loss kl needs a teacher",
        ),
        (
            "description: x\nneeds: y\nsteps: [{inspect: {model: built-in}}, "
            "{convert: {model: built-in, out: o, gkv: 3}}]\n",
            "step convert: self attention: --gkv 3 does not divide 8 key/value heads",
        ),
        (
            "description: x\nneeds: y\nsteps: [{plan: {model: built-in, gkv: 2, merge: auto}}]\n",
            "step plan: --merge auto compares rules on data: give --calibration",
        ),
        (
            "description: x\nneeds: y\nsteps: [{inspect: {model: m}, acelerate: 2}]\n",
            "no command 'acelerate'; did you mean 'accelerate'?",
        ),
        (
            "description: x\nneeds: y\ngpus: {name: H100, cont: 2}\nsteps: [{inspect: {model: m}}]\n",
            "gpus: no key 'cont'; did you mean 'count'?",
        ),
        ("description: x\nneeds: y\nsteps: &s\n - for: {x: [1]}\n   steps: *s\n", "it holds itself"),
        (
            f"description: x\nneeds: y\nsteps:\n - for: {{a: {MANY}, b: {MANY}, c: {MANY}, d: {MANY}}}\n"
            "   steps: [{inspect: {model: m}}]\n",
            "more than 10,000 steps once repetitions are written out",
        ),
        (growing(str(MANY), "[{}]", ", "), "variable a2: the recipe has more than 1,000,000 parts"),
        (growing("xxxxxxxxxx", "'{}'", ""), "variable a4: the recipe has more than 1,000,000 parts"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(text: str, message: str, gqkva: Run, tmp_path: Path) -> None:
    """Before anything runs, with the place and the nearest name."""
    (tmp_path / "r.yaml").write_text(text)
    result = gqkva("run", tmp_path / "r.yaml", "--work", tmp_path / "work")
    assert result.exit_code == 14, (result.stderr, result.exception)
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("gkv", "write variable=value or step.option=value"),
        ("gvk=2", "no variable 'gvk'; did you mean 'gkv'?"),
        ("convrt.gkv=2", "no step 'convrt'; did you mean 'convert'?"),
        ("convert.gvk=2", "convert has no option 'gvk'"),
        ("convert.gkv=[", "--set 'convert.gkv=[', line 1: not YAML"),
    ],
)
def test_a_wrong_change_is_refused(change: str, message: str, gqkva: Run, recipe: Path) -> None:
    result = gqkva("run", recipe, "--dry-run", "--set", change)
    assert result.exit_code == 14
    assert message in result.stderr


def test_null_leaves_an_option_out_of_estimates(gqkva: Run, source: Path, tmp_path: Path) -> None:
    """A key that one entry has and another has not."""
    (tmp_path / "r.yaml").write_text(
        "description: x\nneeds: y\nsteps:\n"
        "  - for: {how: {plain: {}, data: {data: python-library, samples: 4}}}\n"
        "    steps:\n"
        f"      - convert: {{model: {source}, out: '${{work}}/${{how}}', gkv: 2, "
        "calibration: '${how.data}', calibration_samples: '${how.samples}'}\n"
    )
    result = gqkva("run", tmp_path / "r.yaml", "--work", tmp_path / "work", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    plain, calibrated = json.loads(result.stdout)["steps"]
    assert plain["seconds"] < calibrated["seconds"]


def test_epochs_count_in_estimates(gqkva: Run, source: Path, tmp_path: Path) -> None:
    """However they are given."""
    common = f"folder: {source}, any_model: true, data: d, tokens: 1M"
    given = {"one": "", "four": ", num_train_epochs: 4", "others": ", others: {num_train_epochs: 4}"}
    steps = [f"  - uptrain: {{{common}, out: '${{work}}/{name}'{more}}}\n" for name, more in given.items()]
    names = [f"    name: {name}\n" for name in given]
    text = "".join(step + name for step, name in zip(steps, names, strict=True))
    (tmp_path / "r.yaml").write_text(f"description: x\nneeds: y\nsteps:\n{text}")
    result = gqkva("run", tmp_path / "r.yaml", "--work", tmp_path / "work", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    one, four, others = [step["seconds"] for step in json.loads(result.stdout)["steps"]]
    assert four == others == pytest.approx(4 * one)


def test_a_missing_file_and_a_missing_step(gqkva: Run, recipe: Path, tmp_path: Path) -> None:
    missing = gqkva("run", tmp_path / "no.yaml")
    assert (missing.exit_code, "cannot be read: No such file" in missing.stderr) == (14, True)
    wrong = gqkva("run", recipe, "--work", tmp_path / "work", "--from", "evalute")
    assert wrong.exit_code == 14
    assert "no step 'evalute'; did you mean 'evaluate'?" in wrong.stderr
    assert gqkva("run", recipe, "--dry-run", "--from", "evalute").stderr == wrong.stderr
    here = gqkva("run", recipe, "--here")
    assert (here.exit_code, here.stderr) == (14, "error: --here goes with --dry-run\n")


@pytest.mark.parametrize("text", ["{", '{"format_version": 1}', '{"format_version": 1, "steps": {"a": {}}}'])
def test_a_damaged_state_is_named(text: str, gqkva: Run, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "run.json").write_text(text)
    result = gqkva("run", recipe, "--work", tmp_path / "work")
    assert result.exit_code == 14
    assert "run.json is damaged: what was done is not known; use another --work folder" in result.stderr


def test_options_of_every_kind_become_words(tmp_path: Path) -> None:
    """Flags, lists, mappings, numbers; hyphens and underscores."""
    text = "description: x\nneeds: y\nsteps:\n"
    steps = {
        "inspect": "{model: m}",
        "plan": "{model: m, out: p.json, gkv: 2, pictures: false}",
        "convert": "{model: m, out: o, kv-budget: 25%}",
        "push": "{folder: o, repo_id: me/o, dry_run: true}",
        "demo": "{gkv: [2, 1], merge: [mean]}",
        "uptrain": "{folder: o, out: u, data: d, teacher: t, tokens: 1k, loss: {kl: 1, task: 0.5}, "
        "others: {ema: 0.9, liger: 0}}",
    }
    lines = {}
    for name, options in steps.items():
        text += f"  - {name}: {options}\n"
    (tmp_path / "r.yaml").write_text(text)
    for line in prepare(tmp_path / "r.yaml", (), None).lines:
        lines[line.step.command] = str(line)
    assert lines["plan"] == "gqkva plan m --out p.json --gkv 2 --no-pictures"
    assert lines["convert"] == "gqkva convert m o --kv-budget 25%"
    assert lines["push"] == "gqkva push o me/o --dry-run"
    assert lines["demo"] == "gqkva demo --gkv 2 --gkv 1 --merge mean"
    trained = (
        "gqkva uptrain o u --data d --teacher t --tokens 1k --loss kl=1,task=0.5 --set ema=0.9 --set liger=0"
    )
    assert lines["uptrain"] == trained


def test_older_names_of_options_still_work(tmp_path: Path) -> None:
    """Recipes outlive the names: of a file of settings, of what is measured, of an option's flag."""
    text = "description: x\nneeds: y\nsteps:\n"
    steps = {
        "bench": "{folder: m}",
        "compare": "{folders: [m], metric: [loss], out: c}",
        "push": "{folder: m, repo_id: me/m, card: true}",
        "pretrain": f"{{folder: m, out: o, recipe: {tmp_path / 's.yaml'}, set: {{ema: 0.9}}}}",
    }
    (tmp_path / "s.yaml").write_text("data: d\ntokens: 1k\n")
    text += "".join(f"  - {name}: {options}\n" for name, options in steps.items())
    (tmp_path / "r.yaml").write_text(text)
    assert [str(line) for line in prepare(tmp_path / "r.yaml", (), None).lines] == [
        "gqkva bench m",
        "gqkva compare m --metric loss --out c",
        "gqkva push m me/m --card",
        f"gqkva pretrain m o --settings {tmp_path / 's.yaml'} --set ema=0.9",
    ]


def test_python_runs_recipes_without_the_command_line(recipe: Path, tmp_path: Path) -> None:
    """Neither Typer nor tables: whoever calls from a notebook asked for data."""
    with recipe.open("a") as file:
        file.write("  - verify: {folder: '${work}/gqa'}\n")
    script = (
        "import sys, gqkva_convert\n"
        f"steps = gqkva_convert.run({str(recipe)!r}, work={str(tmp_path / 'work')!r})['steps']\n"
        "print([step['left_out'] for step in steps], 'typer' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "[False, False, False] False\n"


def test_a_proof_that_fails_ends_a_recipe(recipe: Path, tmp_path: Path) -> None:
    """From Python too, where the function says ``"passed": False``."""
    gqkva_convert.run(recipe, work=tmp_path / "work")
    folder = tmp_path / "work" / "gqa"
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(bytes(255 for _ in range(4)))
    (tmp_path / "r.yaml").write_text(f"description: x\nneeds: y\nsteps: [{{verify: {{folder: {folder}}}}}]\n")
    with pytest.raises(VerificationError):
        gqkva_convert.run(tmp_path / "r.yaml", work=tmp_path / "other")


def test_from_python(recipe: Path, tmp_path: Path) -> None:
    result = gqkva_convert.run(recipe, ["gkv=1"], work=tmp_path / "work")
    assert [step["name"] for step in result["steps"]] == ["convert", "evaluate"]
    with pytest.raises(RecipeError):
        gqkva_convert.run(recipe, ["gkv=3"], work=tmp_path / "other")


def test_a_dry_run_says_what_it_would_download(
    gqkva: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each model of the Hub, nothing for what is in the cache or what a step makes."""
    steps = (
        "inspect: {model: me/tiny}",
        "convert: {model: me/tiny, out: o/made, gkv: 2}",
        "verify: {folder: o/made}",
    )
    text = "".join(
        f"  - {step}\n" for step in (*steps, "evaluate: {model: o/made, against: me/tiny, data: d.txt}")
    )
    (tmp_path / "r.yaml").write_text(f"description: x\nneeds: y\nsteps:\n{text}")
    monkeypatch.chdir(tmp_path)
    with running_hub() as hub:
        hub.add("me/tiny", source)
        use_hub(hub, tmp_path / "cache", monkeypatch)

        def downloads() -> list[int | None]:
            result = gqkva("run", "r.yaml", "--dry-run", "--json")
            assert result.exit_code == 0, result.stderr
            return [step["download_bytes"] for step in json.loads(result.stdout)["steps"]]

        weights = open_checkpoint(source).nbytes
        assert downloads() == [None, weights, None, None]
        assert downloads() == [None, weights, None, None], "a dry run fetched it"
        assert gqkva("convert", "me/tiny", "elsewhere", "--gkv", "2").exit_code == 0
        assert downloads() == [None] * 4


def test_the_schema_is_documented() -> None:
    page = (ROOT / "docs" / "recipe-schema.md").read_text()
    assert all(f"| `{name}` |" in page for name in Recipe.model_fields)
