"""Which files go with a converted checkpoint, and which would be stale or strange."""

from __future__ import annotations

from pathlib import Path

import pytest

from gqkva_convert.checkpoint.sidecars import REPORT, carried_files, copy_files
from gqkva_convert.errors import CheckpointError

CARRIED = (
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "added_tokens.json",
    "additional_chat_templates/tool_use.jinja",
    "1_Pooling/config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "modules.json",
    "preprocessor_config.json",
    "processor_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
)
WEIGHTS = (
    "flax_model.msgpack",
    "model-00001-of-00002.safetensors",
    "model.ckpt",
    "model.gguf",
    "model.onnx",
    "model.onnx_data",
    "model.safetensors",
    "model.safetensors.index.json",
    "model.tflite",
    "optimizer.pt",
    "consolidated.00.pth",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "rust_model.ot",
    "tf_model.h5",
    "training_args.bin",
)
ABOUT_THE_SOURCE = ("README.md", REPORT, "trainer_state.json", "params.json")
CODE = ("configuration_mpt.py", "modeling_mpt.py")


def fill(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"text of {name}")


def test_what_a_model_needs_beside_its_weights_is_carried(tmp_path: Path) -> None:
    """Without its tokenizer or chat template the result answers nonsense; licences must follow copies."""
    fill(tmp_path, CARRIED)
    (tmp_path / "modules.json").write_text("[]")
    carried, left = carried_files(tmp_path)
    assert carried == {name: tmp_path / name for name in CARRIED}
    assert left == {}


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (WEIGHTS, "weights or training state of the source"),
        (ABOUT_THE_SOURCE, "describes the source"),
        (CODE, "custom code; the result needs none"),
    ],
    ids=["weights", "about the source", "code"],
)
def test_what_belongs_to_the_source_alone_is_left_with_a_reason(
    tmp_path: Path, names: tuple[str, ...], reason: str
) -> None:
    """Stale weights of another format would be loaded instead of the merged ones; code would be run."""
    fill(tmp_path, (*names, "tokenizer.json"))
    carried, left = carried_files(tmp_path)
    assert left == dict.fromkeys(names, reason)
    assert list(carried) == ["tokenizer.json"]


def test_the_configuration_is_ours_to_write(tmp_path: Path) -> None:
    """Carried over, it would tell the old number of heads."""
    fill(tmp_path, ("config.json",))
    assert carried_files(tmp_path) == ({}, {})


def test_nested_weights_and_code_are_left_too(tmp_path: Path) -> None:
    """A folder that is carried must not bring in what its parent could not."""
    fill(
        tmp_path,
        ("2_Dense/config.json", "2_Dense/model.safetensors", "2_Dense/dense.py", "2_Dense/README.md"),
    )
    carried, left = carried_files(tmp_path)
    assert set(carried) == {"2_Dense/config.json", "2_Dense/README.md"}
    assert set(left) == {"2_Dense/model.safetensors", "2_Dense/dense.py"}


def test_hidden_files_and_other_folders_stay(tmp_path: Path) -> None:
    """`.git` may be larger than the model."""
    fill(tmp_path, (".gitattributes", ".git/config", "runs/events.json", "onnx/model.onnx"))
    assert carried_files(tmp_path) == ({}, {})


@pytest.mark.parametrize("name", ["tokenizer.json", "additional_chat_templates/x.jinja"])
def test_a_link_out_of_the_folder_stops_the_conversion(tmp_path: Path, name: str) -> None:
    """A downloaded folder must not carry a reader's private file into an upload."""
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    folder = tmp_path / "model"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(CheckpointError, match=r"is a link to .*id_rsa, neither in the folder nor"):
        carried_files(folder)


@pytest.fixture
def farm(tmp_path: Path) -> Path:
    """A folder of links to another checkpoint, as `ln -s` makes one."""
    base, folder = tmp_path / "base", tmp_path / "farm"
    base.mkdir()
    fill(base, ("model.safetensors", "tokenizer.json", "chat_template.jinja", "1_Pooling/config.json"))
    (base / "id_rsa").write_text("secret")
    folder.mkdir()
    for path in base.iterdir():
        if path.name != "id_rsa":
            (folder / path.name).symlink_to(path)
    return folder


def test_links_to_what_lies_beside_the_linked_weights_are_carried(farm: Path) -> None:
    """A user's own folder of links is one model in two places, and its tokenizer belongs to it."""
    names = {"1_Pooling/config.json", "chat_template.jinja", "tokenizer.json"}
    carried, left = carried_files(farm, [farm / "model.safetensors"])
    assert (set(carried), set(left)) == (names, {"model.safetensors"})


def test_links_beside_the_weights_lead_to_files_of_their_own_name(farm: Path) -> None:
    """Weights may lie in a home folder; a link named as a tokenizer must not fetch a key from there."""
    (farm / "vocab.txt").symlink_to(farm.parent / "base" / "id_rsa")
    with pytest.raises(CheckpointError, match=r"vocab.txt is a link to .*id_rsa"):
        carried_files(farm, [farm / "model.safetensors"])


def test_links_are_not_followed_because_a_file_only_looks_like_weights(farm: Path) -> None:
    """Weights are what the model is loaded from; the rest of a downloaded folder opens no other folder."""
    (farm / "model.safetensors").unlink()
    fill(farm, ("model.safetensors",))
    (farm / "other.safetensors").symlink_to(farm.parent / "base" / "model.safetensors")
    with pytest.raises(CheckpointError, match="is a link to"):
        carried_files(farm, [farm / "model.safetensors"])


def test_links_to_a_hub_snapshot_are_carried(snapshot: Path, tmp_path: Path) -> None:
    """The cache names its blobs by their content; a folder of links to a snapshot leads to these."""
    blobs = snapshot.parents[1] / "blobs"
    (blobs / "e5f6").write_text("weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/e5f6")
    folder = tmp_path / "farm"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).symlink_to(snapshot / name)
    assert set(carried_files(folder, [folder / "model.safetensors"])[0]) == {"tokenizer.json"}
    with pytest.raises(CheckpointError, match="is a link to"):
        carried_files(folder)


def test_a_folder_that_is_a_link_out_is_not_followed(tmp_path: Path) -> None:
    """The same secret by another door."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "diary.jinja").write_text("secret")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "additional_chat_templates").symlink_to("../private")
    with pytest.raises(CheckpointError, match=r"diary.jinja is a link to"):
        carried_files(folder)


def test_a_link_within_the_folder_is_carried(tmp_path: Path) -> None:
    """It leads to nothing that is not given away already."""
    fill(tmp_path, ("tokenizer.json",))
    (tmp_path / "tokenizer_copy.json").symlink_to("tokenizer.json")
    assert set(carried_files(tmp_path)[0]) == {"tokenizer.json", "tokenizer_copy.json"}


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A model as `hf download` keeps it: links into a folder of blobs."""
    repository = tmp_path / "hub" / "models--org--name"
    folder = repository / "snapshots" / "0f1e2d"
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "a1b2").write_text("tokens")
    (repository / "blobs" / "c3d4").write_text("template")
    (folder / "tokenizer.json").symlink_to("../../blobs/a1b2")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "t.jinja").symlink_to("../../../blobs/c3d4")
    return folder


def test_files_of_a_hub_snapshot_are_carried(snapshot: Path) -> None:
    """Every file there is a link out of its folder, and a link within the model."""
    names = ("additional_chat_templates/t.jinja", "tokenizer.json")
    assert carried_files(snapshot) == ({name: snapshot / name for name in names}, {})


def test_a_hub_snapshot_may_not_reach_other_models(snapshot: Path) -> None:
    """Only this model's blobs are its own."""
    other = snapshot.parents[2] / "models--org--private" / "blobs"
    other.mkdir(parents=True)
    (other / "e5f6").write_text("secret")
    for name, target in (
        ("vocab.txt", other / "e5f6"),
        ("merges.txt", "../../../models--org--private/blobs/e5f6"),
    ):
        (snapshot / name).symlink_to(target)
        with pytest.raises(CheckpointError, match=f"{name} is a link to"):
            carried_files(snapshot)
        (snapshot / name).unlink()


def test_a_folder_called_blobs_beside_a_plain_folder_is_no_cache(tmp_path: Path) -> None:
    """Only the cache's own shape opens the way."""
    folder = tmp_path / "models" / "name"
    folder.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "a1b2").write_text("secret")
    (folder / "tokenizer.json").symlink_to("../../blobs/a1b2")
    with pytest.raises(CheckpointError, match="is a link to"):
        carried_files(folder)


@pytest.mark.parametrize("how", ["dot", "relative", "link"])
def test_a_hub_snapshot_is_known_by_any_path(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """`cd` into a snapshot and `convert .`, or a link to it: the tokenizer must come along all the same."""
    folder = Path()
    if how == "dot":
        monkeypatch.chdir(snapshot)
    elif how == "relative":
        monkeypatch.chdir(snapshot.parent)
        folder = Path(snapshot.name)
    else:
        folder = tmp_path / "model"
        folder.symlink_to(snapshot)
    carried, left = carried_files(folder)
    assert (set(carried), left) == ({"additional_chat_templates/t.jinja", "tokenizer.json"}, {})


def test_copies_are_files_and_not_links(snapshot: Path, tmp_path: Path) -> None:
    """The output must outlive the cache it came from."""
    out = tmp_path / "out"
    out.mkdir()
    copy_files(carried_files(snapshot)[0], out)
    assert (out / "tokenizer.json").read_text() == "tokens"
    assert (out / "additional_chat_templates" / "t.jinja").read_text() == "template"
    assert not any(path.is_symlink() for path in out.rglob("*"))
