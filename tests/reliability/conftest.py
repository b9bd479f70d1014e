"""Trials by the hundred, drawn from a seed: how many is asked for by `--trials`, and told at the end."""

from __future__ import annotations

from collections import Counter

import pytest

FOUND: Counter[str] = Counter()


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> int:
    """Trials of each kind: `GQKVA_TRIALS`, or a few."""
    import os

    return int(os.environ.get("GQKVA_TRIALS", "4"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FOUND:
        terminalreporter.section("reliability")
        for kind, count in sorted(FOUND.items()):
            terminalreporter.write_line(f"{kind}: {count:,}")
