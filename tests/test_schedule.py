"""Learning rates over the budget: where they rise, stay and fall."""

import pytest

from fivefold.tools.schedule import FIRST, warm_cosine


@pytest.mark.parametrize(("progress", "share"), [(0, 1), (0.4, 1), (0.7, 0.55), (1, 0.1)])
def test_a_rate_is_level_and_then_falls_along_half_a_cosine(progress, share):
    assert warm_cosine(progress, warmup=0, level=0.4, floor=0.1) == pytest.approx(share)


def test_a_rate_that_is_level_throughout_never_falls():
    assert {warm_cosine(progress, warmup=0, level=1) for progress in (0, 0.5, 1)} == {1}


@pytest.mark.parametrize(("progress", "share"), [(0, FIRST), (0.1, (FIRST + 1) / 2), (0.2, 1), (0.5, 1)])
def test_a_rate_rises_in_a_straight_line(progress, share):
    assert warm_cosine(progress, warmup=0.2, level=0.5) == pytest.approx(share)
