"""Facts about every command that recipes need beside its options."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.sidecars import BENCH, EVALUATION, MEASURED, PAGE, PICTURES, REPORT
from gqkva_convert.comparison.compare import compare
from gqkva_convert.conversion.convert import convert
from gqkva_convert.conversion.init import init
from gqkva_convert.conversion.inspect import inspect
from gqkva_convert.conversion.verify import require, verify
from gqkva_convert.demo_model.demo import demo
from gqkva_convert.description.report import report
from gqkva_convert.evaluation.evaluate import evaluate
from gqkva_convert.evaluation.speed.bench import bench
from gqkva_convert.hub.push import push
from gqkva_convert.planning.command import plan
from gqkva_convert.recipes.checks import (
    check_bench,
    check_evaluation,
    check_export,
    check_push,
    check_request,
    check_training,
)
from gqkva_convert.recipes.estimates import (
    Estimator,
    estimate_conversion,
    estimate_evaluation,
    estimate_fresh,
    estimate_reading,
    estimate_training,
)
from gqkva_convert.runtimes.export import export
from gqkva_convert.uptraining.objectives.precompute import teacher
from gqkva_convert.uptraining.uptrain import pretrain, uptrain


@dataclass(frozen=True)
class CommandFacts:
    """Facts about a command that recipes need.

    Attributes:
        function: The public function of its name.
        estimate: Estimates it from its options and its model's size; or a note where nothing is estimated.
        check: Refuses options that the command would refuse whatever it reads.
        writes: The option that names what it writes.
        beside: The file that it writes into the folder that it reads.
        is_summed: Whether what it writes is done only as long as its checksum is the same.
        ignores: Files of a folder that do not count as read by it.
        reads_headers_alone: Whether nothing of a Hub model is downloaded.
        makes_model: Whether its model is made from nothing.
        refuse: Raises an error for a result that the command line ends with one for.
    """

    function: Callable[..., Any]
    estimate: Estimator | str
    check: Callable[[Mapping[str, Any], Collection[Path]], None] | None = None
    writes: str | None = None
    beside: str | None = None
    is_summed: bool = True
    ignores: frozenset[str] = MEASURED | {REPORT}
    reads_headers_alone: bool = False
    makes_model: bool = False
    refuse: Callable[[Any], None] | None = None

    def call(self, **arguments: Any) -> Any:
        """Call the function as the command line does, but for progress and printing."""
        result = self.function(**arguments)
        if self.refuse is not None:
            self.refuse(result)
        return result


# Every command that can be a step.
FACTS: dict[str, CommandFacts] = {
    "inspect": CommandFacts(inspect, "short", reads_headers_alone=True),
    "plan": CommandFacts(plan, estimate_reading, check_request, writes="out"),
    "convert": CommandFacts(convert, estimate_conversion, check_request, writes="out"),
    "evaluate": CommandFacts(
        evaluate, estimate_evaluation, check_evaluation, beside=EVALUATION, is_summed=False
    ),
    "uptrain": CommandFacts(uptrain, estimate_training, check_training, writes="out"),
    "teacher": CommandFacts(teacher, "not estimated", check_training, writes="out"),
    "bench": CommandFacts(bench, "not estimated", check_bench, beside=BENCH),
    "export": CommandFacts(export, estimate_conversion, check_export, writes="out"),
    "init": CommandFacts(init, estimate_fresh, writes="out", makes_model=True),
    "pretrain": CommandFacts(pretrain, estimate_training, check_training, writes="out"),
    "verify": CommandFacts(verify, estimate_reading, refuse=require),
    "report": CommandFacts(
        report,
        "short",
        beside=PAGE,
        is_summed=False,
        ignores=frozenset({PAGE, *PICTURES, "README.md"}),
    ),
    "compare": CommandFacts(compare, "short", writes="out", ignores=frozenset()),
    "push": CommandFacts(push, "not estimated", check_push, ignores=frozenset()),
    "demo": CommandFacts(demo, "not estimated"),
}
