"""The choice between all threads and one, by what steps take."""

import pytest
import torch

from fivefold.machine import TRIED, WARM, Threads


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def steps(threads, several, one, n=WARM + 2 * TRIED + 5):
    """The threads of each of `n` steps that take so long with two threads and with one."""
    used = []
    with threads.chosen():
        for _ in range(n):
            used.append(torch.get_num_threads())
            threads.took(several if used[-1] == 2 else one)
    return used


@pytest.mark.parametrize(("several", "one", "kept"), [(0.02, 0.01, 1), (0.01, 0.02, 2)])
def test_the_faster_number_is_kept_and_all_are_back_at_the_end(several, one, kept):
    used = steps(Threads(choose=True), several, one)
    assert used == [2] * (WARM + TRIED) + [1] * TRIED + [kept] * 5
    assert torch.get_num_threads() == 2


def test_long_steps_and_those_that_shall_be_repeatable_have_all_threads():
    assert set(steps(Threads(choose=True), 1.0, 0.1)) == {2}
    assert set(steps(Threads(choose=False), 0.02, 0.01)) == {2}


def test_threads_come_back_after_an_error():
    def fail():
        with Threads(choose=True).chosen():
            torch.set_num_threads(1)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.get_num_threads() == 2
