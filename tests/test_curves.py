"""Validation over time: who was still improving, who led early, and the plot of all."""

import itertools
import math
import re

import pytest

from fivefold.report import advice, columns, curves, page, plots
from tests.test_report import READ, content, row

TENTHS = [0.125, 0.25, 0.5, *range(1, 11)]


def curve(value, error=0.5, seconds=3.0):
    """Marks at eighths, a quarter and a half of the first tenth of 30 s, and at every tenth."""
    return [[seconds * at, value(seconds * at), error] for at in TENTHS]


IMPROVING = {  # the curve, its values over seconds, and whether it was still improving at the end
    "nats that rise": ("density", lambda s: -100 + s, True),
    "nats that fall": ("density", lambda s: -100 - s, False),
    "nats that have risen": ("density", lambda s: -100 - 50 * math.exp(-s), False),
    "by less than the error": ("density", lambda s: -100 + s / 10, False),
    "a distance that falls": ("distance", lambda s: 40 - s, True),
    "a distance that rises": ("distance", lambda s: 10 + s, False),
    "one that went wrong at last": ("distance", lambda s: 40 - s if s < 29 else 80.0, False),
}


@pytest.mark.parametrize(("name", "value", "expected"), IMPROVING.values(), ids=IMPROVING)
def test_still_improving(name, value, expected):
    one = row("a", curves={name: curve(value)})
    assert curves.improved(one, name) is expected
    shown = columns.cells(READ["at_end"], columns.lines([one, row("b")]))
    assert shown["a"].text == ("still improving" if expected else "level")
    assert shown["b"].text == "–"
    assert ("Still improving when the budget ended: a" in advice.recommendation([one])[-1].text) is expected


def test_the_error_is_that_of_the_difference():
    """From 24 s to 30 s by 0.6, against 0.5 twice and against 0.4 twice."""
    assert not curves.improved({"curves": {"density": curve(lambda s: s / 10, 0.5)}}, "density")
    assert curves.improved({"curves": {"density": curve(lambda s: s / 10, 0.4)}}, "density")


def test_too_few_or_not_finite_marks_say_nothing():
    assert not curves.improved({"curves": {"density": [[1.0, -1.0, 0.1]]}}, "density")
    assert not curves.improved({"curves": {"distance": [[1.0, 5.0, 0.1], [2.0, math.inf, 0.1]]}}, "distance")
    assert not curves.improved({}, "density")


def late(s):
    return -160 + 2 * s


def test_who_led_early_where_it_is_another_than_at_the_end():
    rows = [row("quick", bits=2.5, curves={"density": curve(lambda s: -130.0)}),
            row("slow", bits=2.0, curves={"density": curve(late)})]  # fmt: skip
    assert "after 1 s quick led." in advice.recommendation(rows)[0].text  # at 10 s too: said once
    rows[0]["curves"]["density"] = curve(lambda s: late(s) + 0.5)  # ahead by less than two errors
    assert "led" not in advice.recommendation(rows)[0].text
    rows[0]["curves"]["density"] = curve(lambda s: -170.0)
    assert "led" not in advice.recommendation(rows)[0].text
    rows = [row("quick", frechet=3.0, curves={"distance": curve(lambda s: 9.0)}),
            row("slow", frechet=1.0, curves={"distance": curve(lambda s: 30 - s)})]  # fmt: skip
    assert "after 1 s quick led." in advice.recommendation(rows)[2].text


@pytest.mark.parametrize(("seconds", "words"), [(1.0, "1 s"), (10.0, "10 s"), (600.0, "10 min"), (3600.0, "1 h")])
def test_durations(seconds, words):
    assert curves.duration(seconds) == words


def test_all_systems_are_in_one_plot_each_named_at_its_end():
    rows = [row(f"s{i}", "flow", curves={"distance": curve(lambda s, i=i: 40 + i - s),
                                         "density": curve(lambda s, i=i: -99 - i)}) for i in range(30)]  # fmt: skip
    text = page.render(content(rows=rows)).split("Which is best after how long")[1].split("</section>")[0]
    assert text.count("<figure") == 2
    for drawn in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        names = [(float(y), name) for y, name in re.findall(r'class="name" x="\d+" y="([\d.]+)">(.*?)<', drawn)]
        assert sorted(name for _, name in names) == sorted(f"s{i}" for i in range(30))
        heights = sorted(y for y, _ in names)
        assert min(b - a for a, b in itertools.pairwise(heights)) > 10
        assert heights[-1] < float(re.search(r'viewBox="0 0 \d+ (\d+)"', drawn).group(1))
    assert "Which is best" not in page.render(content())


def test_names_keep_their_order_and_their_distance():
    placed = plots._spaced([50.0, 49.0, 90.0, 200.0], 0.0, 100.0)
    assert sorted(range(4), key=lambda i: placed[i]) == [1, 0, 2, 3]
    assert placed[3] == 100.0
    assert placed[0] - placed[1] >= 13
    assert curves.window([[-200.0, -100.0], [-110.0, -104.0], [-300.0, -299.0]], "density") == (-112.0, -100.0)
    assert curves.window([[90.0, 70.0]], "distance") == (70.0, 90.0)
