"""`gqkva plan`: choose, write the plan file, draw the plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gqkva_convert.calibration.data import DataSettings
from gqkva_convert.checkpoint.hub import locate
from gqkva_convert.checkpoint.jsonfile import write_json
from gqkva_convert.derivation.licence import check_plan, licence_of, licensed_request
from gqkva_convert.errors import OutputError, UsageError
from gqkva_convert.planning.choose import complete_plan, request_plan
from gqkva_convert.planning.findings import Findings, look_at
from gqkva_convert.planning.plots import draw_findings
from gqkva_convert.plans.file import write_plan
from gqkva_convert.plans.plan import Plan
from gqkva_convert.plans.request import Request, given_wishes, make_request
from gqkva_convert.progress import Stages, no_stages
from gqkva_convert.source.model import open_model
from gqkva_convert.source.stock import require_loadable

_FRONT = "front.json"


def plan(
    model: str | Path,
    out: str | Path = "plan.json",
    request: Request | None = None,
    *,
    gkv: int | None = None,
    gq: int | None = None,
    kv_budget: str | None = None,
    blocks: str | None = None,
    merge: str | None = None,
    grouping: str | None = None,
    refine: str | None = None,
    calibration: str | Path | DataSettings | None = None,
    calibration_samples: int | None = None,
    calibration_length: int | None = None,
    column: Sequence[str] | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    pictures: bool = True,
    overwrite: bool = False,
    stages: Stages = no_stages,
) -> dict[str, Any]:
    """Choose a conversion's groups and merge rules and write them to a file that `convert` takes.

    Args:
        model: Checkpoint folder or Hub id.
        out: Plan file (JSON). Plots go into the folder of its name without ending.
        request: The options that follow as one object, instead of them.
        gkv: Key/value heads to keep; None keeps all.
        gq: Query heads to keep; None keeps all.
        kv_budget: Key/value heads of all layers together, such as ``"25%"``; layers then differ.
        blocks: Kinds of attention to convert, such as ``"decoder"``; None for all.
        merge: As for `convert`, like the options up to ``dtype``.
        grouping: Which heads become one.
        refine: Refinements on calibration data.
        calibration: Data to run through the model: a file, a folder, a Hub id, or `DataSettings`.
        calibration_samples: Sequences or images of it; None for 128.
        calibration_length: Tokens a sequence; None for 2,048 or as many as the model reads.
        column: Columns of ``calibration`` to read, or ``KNOWN=NAME`` where a known column has another name.
        seed: Seed of everything drawn at random; None for 0.
        dtype: Dtype wanted; None keeps each tensor's.
        revision: Branch, tag or commit of a Hub id.
        pictures: Plot head similarities with the groups, the loss of each cheap grouping by layer, and
            the front of ``evolution``.
        overwrite: Replace files that are there.
        stages: Shows progress.

    Returns:
        JSON data: the plan, a row per block with the closed form's loss, the front of ``evolution`` (errors,
        numbers of heads and groups of its points), and the files written.

    Raises:
        GqkvaError: It cannot be planned or written.
    """
    wishes = given_wishes(locals())
    if request is None:
        request = make_request(**wishes)
    elif wishes:
        raise UsageError(f"request says everything itself; leave out {next(iter(wishes))}")
    file = Path(out)
    folder = file.with_suffix("")
    if file.suffix != ".json":
        raise OutputError(f"{file}: a plan file ends in .json")
    for path in (file, folder) if pictures else (file,):
        if path.exists() and not overwrite:
            raise OutputError(f"{path} already exists; choose another name or give --overwrite")
    if folder.is_file():
        raise OutputError(f"{folder} is a file, and the pictures go into a folder of that name")
    located = locate(str(model), revision)
    source = open_model(located.folder)
    proof = licence_of(source)
    request = licensed_request(request, proof)
    require_loadable(source.checkpoint, source.family)
    draft = request_plan(source, request)
    check_plan(draft, proof)
    chosen, calibrated, findings = complete_plan(located, source, draft, request, stages, compare=pictures)
    if findings is None:
        findings = look_at(source, chosen, calibrated, compare=pictures)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_name(f".{file.name}.new")
        write_plan(chosen, scratch)
        scratch.replace(file)
        written = [str(file)]
        if pictures and findings.blocks:
            folder.mkdir(exist_ok=True)
            written += [str(path) for path in draw_findings(findings, chosen.grouping, folder)]
            if findings.front is not None:
                write_json(folder / _FRONT, asdict(findings.front))
                written.append(str(folder / _FRONT))
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror or error}") from error
    front = None if findings.front is None else asdict(findings.front)
    return {"plan": chosen.to_dict(), "rows": _rows(chosen, findings), "front": front, "written": written}


def _rows(plan: Plan, findings: Findings) -> list[dict[str, Any]]:
    rows = []
    for block in plan.blocks:
        found = findings.blocks.get(block.place)
        groups = " ".join("+".join(map(str, group)) for group in block.groups("key"))
        rows.append(
            {
                "kind": block.kind,
                "layer": block.layer,
                "from": block.source.name,
                "to": block.target.name,
                "loss": found.loss if found else None,
                "neighbour_loss": found.neighbour_loss if found else None,
                "groups": groups,
            }
        )
    return rows
