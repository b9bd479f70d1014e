"""`gqkva push`, against a server on this machine that answers as the Hub does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentence_models
import transformers
from hub_server import READ_TOKEN, TOKEN, HubState
from typer.testing import Result

from gqkva_convert import push
from gqkva_convert.hub.push import public_record
from gqkva_convert.hub.sending import PushFile, _describe, _groups

Run = Callable[..., Result]
REPO = "owner/tiny-llama-gqa"


def one_line(result: Result, code: int, words: str) -> None:
    """A refusal: its code, one line that holds the words, no token."""
    assert result.exit_code == code, (result.output, result.exception)
    lines = [line for line in result.stderr.strip().splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    assert words in lines[0], lines[0]
    assert "hf_s" not in result.output
    assert "Traceback" not in result.output


def large(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def test_a_push_arrives_whole_in_one_commit_with_its_card(hub: HubState, stock: Path, gqkva: Run) -> None:
    """Half a model, or one without a card, helps nobody."""
    (stock / ".env").write_text("HF_TOKEN=secret")
    (stock / "optimizer.pt").write_bytes(b"state")
    (stock / "my_token.txt").write_text("secret")
    (stock / "checkpoints").mkdir()
    (stock / "checkpoints" / "model.safetensors").write_bytes(b"x")
    result = gqkva("push", stock, REPO, "--message", "First words", "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads(result.stdout)
    repository = hub.repositories[REPO]
    assert repository.messages == ["initial commit", "First words"]
    files = repository.files("main")
    assert files is not None
    sent = set(files) - {".gitattributes"}
    assert sent == {
        *large(stock),
        "model.safetensors.index.json",
        "config.json",
        "generation_config.json",
        "gqkva_report.json",
        "LICENSE",
        "README.md",
    }
    as_they_are = sent - {"gqkva_report.json"}
    assert all(files[name] == (stock / name).read_bytes() for name in as_they_are)
    assert set(found["left_here"]) == {".env", "optimizer.pt", "my_token.txt", "checkpoints"}
    assert found["commit_url"] == f"{hub.address}/{REPO}/commit/{repository.refs['main']}"
    assert {file["name"]: file["sha256"] for file in found["files"]} == {
        name: hashlib.sha256(files[name]).hexdigest() for name in sent
    }
    assert hub.received == {hashlib.sha256(data).hexdigest(): len(data) for data in large(stock).values()}
    assert TOKEN not in result.output + "".join(map(repr, files.values()))
    assert "POST /api/validate-yaml" in hub.requests
    assert "sending" in result.stderr


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_modules_are_sent_with_their_weights(
    pickled: bool, hub: HubState, tmp_path: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An embedding model without its dense layer does not load; one with another was not proven."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    source, out = sentence_models.save(tmp_path / "source", pickled=pickled), tmp_path / "out"
    assert gqkva("convert", source, out, "--gkv", "2").exit_code == 0
    assert gqkva("verify", out).exit_code == 0
    assert gqkva("push", out, REPO).exit_code == 0
    files = hub.repositories[REPO].files("main")
    assert files is not None
    name = "2_Dense/pytorch_model.bin" if pickled else "2_Dense/model.safetensors"
    for inner in (name, "2_Dense/config.json", "1_Pooling/config.json", "modules.json"):
        assert files[inner] == (out / inner).read_bytes()
    (out / name).write_bytes((out / name).read_bytes() + b" ")
    one_line(gqkva("push", out, REPO), 9, name)


def test_nothing_sent_names_a_folder_of_this_machine(hub: HubState, stock: Path, gqkva: Run) -> None:
    """Neither weights nor reports nor measurements, and of what was run the last part of each path."""
    evaluation = {
        "format_version": 1,
        "results": [
            {
                "task": "lm-eval",
                "data": str(stock / "private.jsonl"),
                "metrics": [{"metric": "y", "value": 1}],
            }
        ],
    }
    (stock / "gqkva_evaluation.json").write_text(json.dumps(evaluation))
    assert gqkva("push", stock, REPO).exit_code == 0
    files = hub.repositories[REPO].files("main")
    assert files is not None
    assert [name for name, content in files.items() if str(stock.parent).encode() in content] == []
    sent = json.loads(files["gqkva_report.json"])
    kept = json.loads((stock / "gqkva_report.json").read_text())
    assert sent["source"]["name"] == Path(kept["source"]["name"]).name
    assert sent["command"] == ["convert", sent["source"]["name"], stock.name, *kept["command"][3:]]
    assert {**sent, "source": 0, "command": 0} == {**kept, "source": 0, "command": 0}
    assert json.loads(files["gqkva_evaluation.json"])["results"][0]["data"] == "private.jsonl"


@pytest.mark.parametrize(
    ("recorded", "sent"),
    [
        (
            {"source": {"name": "secret/mha"}, "command": ["convert", "secret/mha", "secret/out"]},
            ["mha", "out"],
        ),
        ({"uptraining": {"settings": {"data": "secret/a.jsonl,/secret/b.jsonl"}}}, ["a.jsonl,b.jsonl"]),
        ({"uptraining": {"settings": {"teacher": "secret/c.yaml"}}}, ["c.yaml"]),
        (
            {"files_left_behind": {"/secret/file": "see file:///secret/notes and ~me/secret/x"}},
            ["notes", "x"],
        ),
        (
            {"note": "https://huggingface.co/a/b, a/b and 1/2 stay"},
            ["https://huggingface.co/a/b, a/b and 1/2"],
        ),
    ],
)
def test_paths_in_reports_end_up_short(recorded: dict[str, Any], sent: list[str], tmp_path: Path) -> None:
    """Relative ones, several of them, in texts and as names; addresses and Hub ids stay."""
    (tmp_path / "gqkva_report.json").write_text(json.dumps(recorded))
    text = public_record(tmp_path / "gqkva_report.json").decode()
    assert "secret" not in text
    assert all(part in text for part in sent)


def test_what_was_pushed_loads_inspects_and_converts(
    hub: HubState, stock: Path, grouped: Path, gqkva: Run, tmp_path: Path
) -> None:
    """The other end is transformers, and gqkva itself."""
    assert gqkva("push", grouped, REPO).exit_code == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(REPO)
    assert type(model).__name__ == "GqkvaLlamaForCausalLM"
    there = json.loads(gqkva("inspect", REPO, "--json").stdout)
    here = json.loads(gqkva("inspect", grouped, "--json").stdout)
    assert {**there, "model": 0, "converted": 0} == {**here, "model": 0, "converted": 0}
    assert gqkva("push", stock, "owner/stock").exit_code == 0
    again = gqkva("convert", "owner/stock", tmp_path / "again", "--gkv", "1")
    assert again.exit_code == 0, again.output
    source = json.loads((tmp_path / "again" / "gqkva_report.json").read_text())["source"]
    assert source["card"]["license"] == "apache-2.0"
    assert source["revision"] == hub.repositories["owner/stock"].refs["main"]


def test_a_second_push_sends_only_what_changed(hub: HubState, stock: Path, gqkva: Run) -> None:
    """Mending a card must not cost an upload of 140 GB, nor leave an empty commit."""
    assert gqkva("push", stock, REPO).exit_code == 0
    before = dict(hub.received)
    again = gqkva("push", stock, REPO)
    assert again.exit_code == 0, again.output
    assert "everything is there already" in again.stderr
    assert len(hub.repositories[REPO].messages) == 2
    (stock / "README.md").write_text((stock / "README.md").read_text() + "\nMy own words.\n")
    edited = gqkva("push", stock, REPO)
    assert "is your own" in edited.stderr
    files = hub.repositories[REPO].files("main")
    assert files is not None
    assert b"My own words." in files["README.md"]
    assert len(hub.repositories[REPO].messages) == 3
    assert hub.received == before


def test_weights_of_an_earlier_push_do_not_stay_beside_the_new(
    hub: HubState, stock: Path, grouped: Path
) -> None:
    """An old model.safetensors would be read in place of new shards."""
    repository = hub.add(REPO, None)
    old = {"model.safetensors": b"old", "adapter.safetensors": b"kept", "pytorch_model.bin": b"old"}
    repository.commit("main", old, "old")
    result = push(stock, REPO)
    assert result["removed_there"] == ["model.safetensors", "pytorch_model.bin"]
    files = repository.files("main")
    assert files is not None
    assert files["adapter.safetensors"] == b"kept"
    assert "model.safetensors" not in files


def test_a_card_edited_on_the_hub_stays(hub: HubState, stock: Path, gqkva: Run) -> None:
    """Its owner may have written it on the Hub's page."""
    repository = hub.add(REPO)
    repository.commit("main", {"README.md": b"---\nlicense: mit\n---\n# Mine\n"}, "edited there")
    result = gqkva("push", stock, REPO)
    assert result.exit_code == 0, result.output
    assert "somebody edited" in result.stderr
    assert repository.commits[repository.refs["main"]]["README.md"].endswith(b"# Mine\n")
    assert gqkva("push", stock, REPO, "--card").exit_code == 0
    assert b"Written by gqkva" in repository.commits[repository.refs["main"]]["README.md"]


@pytest.mark.parametrize("part_bytes", [None, 5000])
def test_a_dropped_connection_is_tried_again_and_a_push_goes_on(
    part_bytes: int | None, hub: HubState, stock: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failure must not lose what has arrived (huggingface_hub issue 1801: 80 GB)."""
    monkeypatch.setattr("gqkva_convert.hub.sending.GROUP_BYTES", 1)
    hub.part_bytes = part_bytes
    hub.fail(r"PUT /lfs/", after_bytes=2000, times=2)  # huggingface_hub itself tries again
    victim = hashlib.sha256(max(large(stock).values(), key=len)).hexdigest()
    broken = hub.fail(rf"PUT /lfs/{victim}", after_bytes=3000, times=1000)
    first = gqkva("push", stock, REPO)
    one_line(first, 8, "cannot be reached")
    assert "trying again" in first.stderr
    assert len(hub.repositories[REPO].messages) == 1, "nothing is seen before all is there"
    arrived = set(hub.stored)
    assert arrived == {hashlib.sha256(data).hexdigest() for data in large(stock).values()} - {victim}
    broken.times = 0
    hub.received.clear()
    second = gqkva("push", stock, REPO)
    assert second.exit_code == 0, second.output
    assert hub.received == {victim: len(max(large(stock).values(), key=len))}


@pytest.mark.parametrize(
    "where", ["whoami", "repos/create", "GET .*/tree/", "preupload", "objects/batch", "PUT /lfs", "/commit/"]
)
def test_a_failure_that_passes_is_waited_out(where: str, hub: HubState, stock: Path, gqkva: Run) -> None:
    """The Hub answers 503 now and then; every step has to bear it."""
    hub.fail(where, 503, times=2)
    result = gqkva("push", stock, REPO)
    assert result.exit_code == 0, result.output
    assert len(hub.repositories[REPO].messages) == 2


def test_a_commit_whose_answer_was_lost_is_not_made_twice(
    hub: HubState, stock: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection may break after the Hub has done its work."""
    import hub_server

    original = hub_server.Handler.commit
    calls = []

    def commit(self: hub_server.Handler, *arguments: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            self.reply = lambda *_: self.connection.close()  # type: ignore[method-assign]
        original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(hub_server.Handler, "commit", commit)
    result = gqkva("push", stock, REPO)
    assert result.exit_code == 0, result.output
    assert len(calls) == 1
    assert len(hub.repositories[REPO].messages) == 2


@pytest.mark.parametrize(
    ("where", "status", "headers", "words"),
    [
        ("PUT /lfs", 500, {}, "the Hub fails (500)"),
        ("/commit/", 502, {}, "the Hub fails (502)"),
        ("preupload", 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "expired"),
        ("preupload", 403, {"X-Error-Message": f"no, {TOKEN}"}, "may not write"),
        ("/commit/", 403, {"X-Error-Message": "Private repository storage limit reached"}, "has no room"),
        ("/commit/", 400, {"X-Error-Message": "bad commit"}, "bad commit"),
        ("repos/create", 402, {}, "has no room"),
        ("/commit/", 409, {}, "push again"),
        ("/tree/", 404, {"X-Error-Code": "RevisionNotFound"}, "no such branch"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    where: str, status: int, headers: dict[str, str], words: str, hub: HubState, stock: Path, gqkva: Run
) -> None:
    """Users act on the reason, not on a traceback."""
    hub.fail(where, status, times=1000, headers=headers)
    one_line(gqkva("push", stock, REPO), 8, words)


@pytest.mark.parametrize(
    "where", ["whoami", "repos/create", "api/models/[^/]*/[^/]*$", "preupload", "/commit/"]
)
@pytest.mark.parametrize("body", [{}, [], "x", b"<html>"])
def test_answers_of_another_form_are_one_line(
    where: str, body: object, hub: HubState, stock: Path, gqkva: Run
) -> None:
    """A proxy or another service may answer 200 to everything."""
    hub.fail(where, 200, times=1000, body=body)
    result = gqkva("push", stock, REPO)
    if (where, body) != ("whoami", {}):  # an account without a name may still write
        one_line(result, 8, "")


def test_accounts_and_names_that_cannot_be(
    hub: HubState, stock: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usual mistakes, before a byte is sent."""
    hub.add("owner/gated", gated=True)
    hub.add("owner/public")
    one_line(gqkva("push", stock, "someone/else"), 8, "may not write to someone/else")
    one_line(gqkva("push", stock, "owner/a--b"), 8, "no name a Hub repository can have")
    one_line(gqkva("push", stock, "justaname"), 8, "names no owner")
    one_line(gqkva("push", stock, "datasets/owner/name"), 8, "among the Hub's datasets")
    one_line(gqkva("push", stock, "owner/gated"), 8, "is gated")
    one_line(gqkva("push", stock, "owner/absent", "--create-pr"), 8, "no model repository owner/absent")
    one_line(gqkva("push", stock, "owner/public", "--private"), 8, "exists and is public")
    one_line(gqkva("push", stock, REPO, "--create-pr", "--revision", "b"), 8, "leave out --revision")
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    one_line(gqkva("push", stock, REPO), 8, "may only read")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    one_line(gqkva("push", stock, REPO), 8, "wrong, revoked or expired")
    monkeypatch.setenv("HF_TOKEN", "hf_süß")
    one_line(gqkva("push", stock, REPO), 8, "characters that no token has")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", os.devnull)
    one_line(gqkva("push", stock, REPO), 8, "there is no Hub token")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    one_line(gqkva("push", stock, REPO), 8, "HF_HUB_OFFLINE")
    assert hub.received == {}


def test_private_branches_and_pull_requests(hub: HubState, stock: Path, gqkva: Run) -> None:
    """Each lands where it was asked for, and nowhere else."""
    assert gqkva("push", stock, REPO, "--private", "--revision", "trial").exit_code == 0
    repository = hub.repositories[REPO]
    assert repository.private
    assert set(repository.files("main") or {}) == {".gitattributes"}
    assert "config.json" in (repository.files("trial") or {})
    pull = gqkva("push", stock, REPO, "--create-pr")
    assert pull.exit_code == 0, pull.output
    assert pull.stdout.strip() == f"{hub.address}/{REPO}/discussions/1"
    assert "config.json" in (repository.files("refs/pr/1") or {})
    assert set(repository.files("main") or {}) == {".gitattributes"}
    hub.fail("/commit/", times=1000)
    (stock / "NOTICE").write_text("new")
    one_line(gqkva("push", stock, REPO, "--create-pr"), 8, "see first whether")
    assert sum("/commit/" in name for name in hub.requests) == 3, "a pull request is asked for once"


def test_folders_that_are_not_whole_or_not_proven_stay_here(
    hub: HubState, stock: Path, grouped: Path, tiny: Callable[[str], Path], gqkva: Run, tmp_path: Path
) -> None:
    """What others load must be what was checked."""
    one_line(gqkva("push", tiny("llama"), REPO), 9, "no output of gqkva")
    one_line(gqkva("push", tmp_path / "absent", REPO), 3, "is not a folder")
    report = json.loads((stock / "gqkva_report.json").read_text())
    write = (stock / "gqkva_report.json").write_text
    write(json.dumps({**report, "verification": None}))
    one_line(gqkva("push", stock, REPO), 9, f"run `gqkva verify {stock}` first")
    write(json.dumps({**report, "verification": {**report["verification"], "passed": False}}))
    one_line(gqkva("push", stock, REPO), 9, "did not pass")
    write(json.dumps(report))
    shard = sorted(stock.glob("*.safetensors"))[0]
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    one_line(gqkva("push", stock, REPO), 9, "changed since the last verification")
    shard.write_bytes(data[:-5])
    one_line(gqkva("push", stock, REPO), 3, shard.name)
    shard.unlink()
    one_line(gqkva("push", stock, REPO), 3, f"{shard.name}, which is missing")
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(data)
    shard.symlink_to(outside)
    one_line(gqkva("push", stock, REPO), 3, "leads out of the folder")
    shard.unlink()
    shard.write_bytes(data)
    (stock / "vocab.txt").symlink_to("/etc/hostname")
    one_line(gqkva("push", stock, REPO), 3, "vocab.txt is a link that leads out of the folder")
    code = grouped / "modeling_gqkva_llama.py"
    code.write_text(code.read_text() + "\nimport os\n")
    one_line(gqkva("push", grouped, REPO), 9, "modelling file")
    assert hub.requests == []


def test_unverified_goes_out_with_a_line_in_the_card(hub: HubState, stock: Path, gqkva: Run) -> None:
    """Who loads it must know."""
    report = json.loads((stock / "gqkva_report.json").read_text())
    (stock / "gqkva_report.json").write_text(json.dumps({**report, "verification": None}))
    result = gqkva("push", stock, REPO, "--unverified")
    assert result.exit_code == 0, result.output
    files = hub.repositories[REPO].files("main") or {}
    assert b"**Not verified**" in files["README.md"]


def test_a_token_in_a_file_stays_here(hub: HubState, stock: Path, gqkva: Run) -> None:
    """A token that was once public has to be revoked."""
    (stock / "tokenizer_config.json").write_text(json.dumps({"auth": TOKEN}))
    one_line(gqkva("push", stock, REPO), 3, "tokenizer_config.json holds what looks like a Hub token")
    (stock / "tokenizer_config.json").unlink()
    (stock / "README.md").write_text(f"# mine\n{TOKEN}\n")
    one_line(gqkva("push", stock, REPO), 3, "holds what looks like a Hub token")


def test_metadata_that_the_hub_does_not_take(hub: HubState, stock: Path, gqkva: Run) -> None:
    """The Hub checks a card's front matter itself; ours is checked here too."""
    hub.refuse_metadata = '"license" must be one of'
    one_line(gqkva("push", stock, REPO), 8, '"license" must be one of')
    (stock / "README.md").write_text("---\n- [a\n---\n# mine\n")
    one_line(gqkva("push", stock, REPO), 3, "README.md is no model card")


def test_a_dry_run_asks_nothing_and_writes_nothing(hub: HubState, stock: Path, gqkva: Run) -> None:
    """One looks before one publishes."""
    before = {path.name for path in stock.iterdir()}
    shown = gqkva("push", stock, REPO, "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "model.safetensors.index.json" in shown.stdout
    found = json.loads(gqkva("push", stock, REPO, "--dry-run", "--json").stdout)
    assert found["card_text"].startswith("---\nlanguage:")
    assert found["bytes"] == sum(file["bytes"] for file in found["files"])
    assert {path.name for path in stock.iterdir()} == before
    assert hub.requests == []


def test_what_is_left_is_estimated(tmp_path: Path) -> None:
    """140 GB take hours; one wants to know how many."""
    files = [PushFile(f"{n}.safetensors", b"", n * 10**9, "") for n in (1, 2, 5)]
    line = _describe(files[1:2], files, 10**9, 8 * 10**9, 60)
    assert line == "sending 2.safetensors: 1.00 GB of 8.00 GB in 3 files are through, about 7 min left"
    assert [len(group) for group in _groups(files)] == [1, 1, 1]


def test_measurements_of_a_source_do_not_travel(stock: Path, tmp_path: Path, gqkva: Run) -> None:
    """They say nothing of what is made from it."""
    (stock / "gqkva_evaluation.json").write_text("{}")
    assert gqkva("convert", stock, tmp_path / "next", "--gkv", "1").exit_code == 0
    assert not (tmp_path / "next" / "gqkva_evaluation.json").exists()


def test_a_read_only_folder_can_be_pushed(
    hub: HubState, stock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card goes out even where it cannot be left behind."""

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    assert push(stock, REPO)["card"] == "written"
    assert not (stock / "README.md").exists()


def test_an_exported_folder_keeps_licence_and_origin(
    hub: HubState, grouped: Path, gqkva: Run, tmp_path: Path
) -> None:
    """An export is made from a conversion; its licence is still the first model's."""
    assert gqkva("export", grouped, tmp_path / "stock").exit_code == 0
    result = gqkva("push", tmp_path / "stock", REPO, "--unverified", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    assert "license: apache-2.0" in json.loads(result.stdout)["card_text"]
    shutil.rmtree(tmp_path / "stock")
