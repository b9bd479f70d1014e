"""Every token is predicted once, with the context that the settings state."""

from __future__ import annotations

import pytest

from gqkva_convert.evaluation.windows import rolling_windows


@pytest.mark.parametrize(("length", "stride"), [(8, 8), (8, 4), (8, 1), (2, 2), (1, 1)])
def test_windows_are_those_of_lm_eval(length: int, stride: int) -> None:
    """Perplexities are comparable with other people's only where the cuts are the same."""
    utils = pytest.importorskip("lm_eval.utils")
    for tokens in (0, 1, 2, 7, 8, 9, 16, 17, 40):
        text = list(range(100, 100 + tokens))
        expected = [
            utils.make_disjoint_window(pair)
            for pair in utils.get_rolling_token_windows(text, 0, length, length - stride + 1)
        ]
        found = list(rolling_windows(text, 0, length, stride))
        assert [token for window in found for token in window.targets] == text
        for window, (context, continuation) in zip(found, expected, strict=True):
            assert list(window.targets) == continuation
            assert list(window.inputs) == [*context, *continuation][:-1]


def test_without_a_prefix_the_first_token_is_context() -> None:
    found = list(rolling_windows([5, 6, 7, 8], None, 2, 2))
    assert [(list(window.inputs), list(window.targets)) for window in found] == [
        ([5, 6], [6, 7]),
        ([6, 7], [8]),
    ]
