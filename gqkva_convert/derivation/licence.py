"""What a proof allows: asked for before a conversion by a generated table, and remembered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gqkva_convert.architectures import Family
from gqkva_convert.checkpoint.cache import make_cache
from gqkva_convert.checkpoint.digest import file_sha256
from gqkva_convert.checkpoint.jsonfile import write_json
from gqkva_convert.errors import FamilyError, UsageError
from gqkva_convert.modeling.families import stock_name
from gqkva_convert.plans.plan import Plan
from gqkva_convert.plans.request import Request
from gqkva_convert.records.environment import versions
from gqkva_convert.records.family_proof import FamilyProof, without_numbers
from gqkva_convert.records.record import read_record
from gqkva_convert.source.model import SourceModel
from gqkva_convert.source.tensors import drop_reason
from gqkva_convert.transforms.merge import RULES

_PLAIN = "mean"


# The output head: absent from checkpoints in which it is the embedding.
_TIED = "lm_head.weight"


def licence_of(source: SourceModel) -> FamilyProof | None:
    """Return the proof of a source's table on its configuration; None for a table written by hand.

    Raises:
        FamilyError: The table does not describe what transformers makes of the configuration, or the tensors
            stored are not those of its class.
    """
    if not source.family.is_derived:
        return None
    named = source.config.get("architectures") or [source.family.architecture]
    proof = proof_of(source.config, source.family, stock_name(str(named[0])))
    _check_names(source, proof)
    return proof


def proof_of(config: Mapping[str, Any], family: Family, architecture: str) -> FamilyProof:
    """Return the proof of a table on a configuration: from the cache, or made now and put there.

    Args:
        config: The configuration.
        family: The table.
        architecture: Name of the model's class.

    Raises:
        FamilyError: The table does not describe what transformers makes of the configuration.
    """
    path = make_cache("families") / f"{family.model_type}-{_digest(config, family, architecture)}.json"
    known = read_record(path, FamilyProof, "gqkva convert")
    if known is not None:
        return known
    from gqkva_convert.derivation.proof import prove

    proof = prove(config, family, architecture)
    scratch = path.with_suffix(".new")
    write_json(scratch, proof.to_dict())
    scratch.replace(path)
    return proof


def _digest(config: Mapping[str, Any], family: Family, architecture: str) -> str:
    """Return the SHA-256 of all that a proof depends on: configuration, table, versions, modelling file."""
    from gqkva_convert.derivation.stock import modeling_file

    kept = {
        key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")
    }
    code = file_sha256(modeling_file(architecture))
    table = [
        sorted(family.config_keys),
        repr((family.attention, family.prefixes, family.others, family.heads)),
    ]
    parts = [kept, architecture, versions(), code, table]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _check_names(source: SourceModel, proof: FamilyProof) -> None:
    """Refuse tensors that the small model did not store, and the lack of one that it did."""
    found = {
        without_numbers(name): name
        for name in source.checkpoint.tensors
        if not name.endswith(_TIED) and drop_reason(source, name) is None
    }
    both = proof.names, proof.held_names
    spellings = [{name for name in names if not name.endswith(_TIED)} for names in both]
    if found.keys() in spellings:
        return
    expected = min(spellings, key=lambda names: len(names ^ found.keys()))
    extra = [name for abstract, name in found.items() if abstract not in expected]
    missing = sorted(expected - found.keys())
    fault = f"stores {extra[0]!r}" if extra else f"does not store {missing[0]!r}"
    raise FamilyError(
        f"{source.checkpoint.folder} {fault}, unlike transformers' own checkpoints of "
        f"{source.family.model_type}; load it with transformers, save_pretrained it, and convert that"
    )


def is_licensed(rule: str, proof: FamilyProof | None) -> bool:
    """Return whether a merge rule may be used under a proof; None allows all."""
    mixes = rule == "auto" or RULES[rule].group_method in ("closed-form", "aligned")
    return proof is None or not mixes or not proof.unlicensed


def licensed_request(request: Request, proof: FamilyProof | None) -> Request:
    """Return a request whose default rule is one that the proof allows."""
    if request.merge is None and not is_licensed(request.chosen_merge, proof):
        return replace(request, merge=_PLAIN)
    return request


def check_plan(plan: Plan, proof: FamilyProof | None) -> None:
    """Refuse a plan with a rule that the proof does not allow.

    Raises:
        UsageError: There is one.
    """
    if proof is None:
        return
    rules = {plan.merge}
    for block in plan.blocks:
        rules |= {*block.rules.scores, *block.rules.values} if block.rules else set()
    for rule in sorted(rules):
        if rule in RULES and not is_licensed(rule, proof):
            raise UsageError(f"--merge {rule} mixes features, {proof.unlicensed}; use --merge {_PLAIN}")
