"""The checks made of an output, and what each found."""

from __future__ import annotations

from dataclasses import dataclass, field

from gqkva_convert.records.report import Check


@dataclass
class Proof:
    """The checks made so far."""

    checks: list[Check] = field(default_factory=list)

    def add(self, name: str, failure: str | None, detail: str) -> None:
        """Note a check: why it failed, or None and what it found."""
        self.checks.append(Check(check=name, passed=failure is None, detail=failure or detail))

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)
