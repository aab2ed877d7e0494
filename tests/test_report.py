"""The table, its ranking and advice, and the page."""

import re
import shutil

import numpy as np
import pytest
from rich.console import Console

from fivefold.report import advice, columns, page, pictures, plots, terminal
from fivefold.space import Column, Space

IMAGE = Space("image", (1, 8, 8), levels=17, layout="HW", name="digits")
PLANE = Space("table", (2,), columns=(Column("x"), Column("y")), name="moons")
MIXED = Space("table", (2,), columns=(Column("<b>age</b>", "integer", levels=9), Column("income")), name="people")
TEXT = Space("text", (12,), levels=3, symbols="<b>", name="words")
AUDIO = Space("audio", (800,), levels=65536, rate=8000, name="tones")


def row(label, family="flow", kind="exact", bits=2.0, frechet=1.0, *, error=0.02, rate=1000.0, seed=0, **fields):
    """A finished row with the given headline numbers."""
    density = {"kind": kind} if kind in ("none", "unnormalised") else {
        "kind": kind, "note": "16 samples" if kind == "lower bound" else "", "nats": -44.4 * bits,
        "standard_error": 0.3, "bits_per_dim": bits, "bits_error": error, "examples": 300,
    }  # fmt: skip
    floors = {"frechet": 0.3, "kernel": 0.0, "recall": 0.8, "two_sample_accuracy": 0.5, "memorisation": 0.5}
    values = {
        "frechet": frechet,
        "kernel": frechet / 9,
        "recall": 0.8 / frechet,
        "two_sample_accuracy": 0.6,
        "memorisation": 0.5,
    }
    return {
        "system": label, "title": label.upper(), "family": family, "label": label, "seed": seed, "status": "ok",
        "error": None, "command": f"fivefold train {label} --data digits --budget 30s", "density": density,
        "quality": {"features": "a small classifier of the training data", "samples": 500, "reference": 300,
                    **{k: {"value": v, "error": 0.05 * v, "floor": floors[k]} for k, v in values.items()}},
        "cost": {"train_examples_per_second": 9e3, "seconds_to_best": 21.0, "budget_seconds": 30.0,
                 "sample_per_second_1": rate / 50, "sample_per_second_64": rate, "sample_evaluations": 1,
                 "parameters": 123_456, "peak_memory_bytes": 5e8},
        "stars": {"training": 2, "sampling": 5, "parameters": 5, "resolution": 1},
        "facts": {"free_form_jacobian": False, "exact_density": "yes"},
        "curves": {name: [[s, 5 / (1 + s)] for s in range(30)] for name in ("loss", "validation")},
        **fields,
    }  # fmt: skip


def failed(label="broken", status="failed", error="ValueError: <script>alert(1)</script>"):
    return {
        "system": label,
        "label": label,
        "family": "gan",
        "seed": 0,
        "status": status,
        "error": error,
        "command": "x",
    }


ELEVEN = [
    row("rbm", "energy", "estimate", 2.9, 6.0, rate=310),
    row("igebm", "energy", "unnormalised", frechet=4.2, rate=85),
    row("ddpm", "diffusion", "lower bound", 3.1, 1.1, rate=140),
    row("vae", "vae", "lower bound", 2.31, 3.4, rate=51_000),
    row("vq-vae", "vae", "lower bound", 2.6, 1.9, rate=2_300),
    row("dcgan", "gan", "none", frechet=1.4, rate=44_000),
    row("gated-pixelcnn", "autoregressive", "exact", 1.86, 0.9, error=0.02, rate=420),
    row("transformer", "autoregressive", "exact", 1.89, 1.0, error=0.02, rate=610),
    row("made", "autoregressive", "exact", 2.12, 2.6, rate=1_500),
    failed("realnvp", "diverged", "the loss of model was not finite at step 310, four times"),
    row("spline-flow", "flow", "lower bound", 2.05, 1.8, rate=8_400),
]


def content(space=IMAGE, rows=ELEVEN, n=64):
    """A page's content with random samples of the space."""
    rng = np.random.default_rng(0)
    draw = {
        "image": lambda: rng.integers(0, space.levels or 1, (n, *space.shape)),
        "table": lambda: np.stack([rng.integers(0, 9, n), rng.normal(size=n)], 1).astype(np.float32),
        "text": lambda: rng.integers(0, 3, (n, *space.shape)),
        "audio": lambda: rng.integers(0, 65536, (n, *space.shape)),
    }[space.kind]
    arrays = {r["label"]: {"samples": draw()} for r in rows if r["status"] == "ok"}
    if space is PLANE:
        arrays[rows[0]["label"]]["density"] = rng.normal(size=(20, 20))
    settings = {
        "data": {"name": space.name, "source": space.name, "fingerprint": "0123abcd"}, "space": space.to_json(),
        "budget": "30s", "machine": "2 cores", "notes": ["<i>labels</i> left out"],
        "sizes": {"train": 1257, "valid": 270, "test": 270},
        "versions": {"fivefold": "0.1", "torch": "2", "python": "3"},
    }  # fmt: skip
    return page.Content(settings, list(rows), draw(), arrays)


READ = {column.key: column for column in (columns.BITS, columns.NATS, *columns.QUALITY, *columns.COST)}


@pytest.mark.parametrize(
    ("reading", "several", "text"),
    [
        (columns.Reading(1.876, 0.012, "exact"), False, "1.88 (exact)"),
        (columns.Reading(2.314, 0.012, "lower bound", "16 samples"), False, "≤ 2.31 (bound, 16 samples)"),
        (columns.Reading(3.31, 0.23, "estimate"), False, "3.3 ± 0.2 (estimate)"),
        (columns.Reading(1.876, 0.034, "exact"), True, "1.88 ± 0.03 (exact)"),
        (columns.Reading(np.nan, kind="none"), False, "none"),
        (columns.Reading(np.nan, kind="unnormalised"), True, "unnormalised"),
    ],
)
def test_the_kind_travels_with_the_number(reading, several, text):
    assert columns.BITS.show(reading, several) == text
    assert columns.NATS.show(reading, several) == text.replace("≤", "≥")


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (3.3, 0.12, "3.30 ± 0.12"),
        (0.04567, 0, "0.0457"),
        (12345, 230, "12,345 ± 230"),
        (0, 0, "0"),
        (np.inf, 0, "not finite"),
    ],
)
def test_no_more_digits_than_known(value, error, text):
    assert columns.with_error(value, error) == text


def best(rows, key):
    return {label: cell.mark for label, cell in columns.cells(READ[key], columns.lines(rows)).items() if cell.mark}


RANKED = {  # what is marked of rows of (kind, bits), each with an error of 0.02
    "best alone": ([("exact", 2.0), ("exact", 2.2)], {"0": "best"}),
    "tie within two errors": ([("exact", 2.0), ("exact", 2.05), ("exact", 2.2)], {"0": "tie", "1": "tie"}),
    "a tie of all marks none": ([("exact", 2.0), ("exact", 2.05)], {}),
    "a bound never beats an exact value": (
        [("exact", 2.0), ("exact", 2.3), ("lower bound", 1.5), ("lower bound", 1.9)], {"0": "best", "2": "best"},
    ),
    "one of a kind has no rank": ([("exact", 2.0), ("lower bound", 1.5)], {}),
    "no density is no rank": ([("none", 0.0), ("exact", 2.0), ("exact", 2.4)], {"1": "best"}),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "marks"), RANKED.values(), ids=RANKED)
def test_only_like_is_ranked_with_like(rows, marks):
    assert best([row(str(i), kind=kind, bits=bits) for i, (kind, bits) in enumerate(rows)], "bits") == marks


def test_below_the_floor_is_not_better_than_at_it():
    rows = [row("a", frechet=0.1), row("b", frechet=0.29), row("c", frechet=5.0)]
    assert best(rows, "frechet") == {"a": "tie", "b": "tie"}


def test_a_target_is_best_from_either_side():
    rows = [row("near"), row("far")]
    for r, value in zip(rows, (0.45, 0.9), strict=True):
        r["quality"]["two_sample_accuracy"] = {"value": value, "error": 0.01, "floor": 0.5}
    assert best(rows, "two_sample_accuracy") == {"near": "best"}


def test_seeds_give_mean_and_error():
    [line] = columns.lines([row("a", bits=bits, seed=seed) for seed, bits in enumerate((2.0, 2.2, 2.4))])
    reading = line.reading(columns.BITS)
    assert reading.value == pytest.approx(2.2)
    assert reading.error == pytest.approx(0.2 / 3**0.5)  # over seeds, larger than the 0.02 of one evaluation
    assert columns.cells(columns.BITS, [line])["a"].text == "2.20 ± 0.12 (exact)"


ADVICE = {  # rows, which need (0 density, 1 speed, 2 quality), the choice, words of the text
    "a clear best": ([row("a", bits=1.9), row("b", bits=2.4)], 0, ["a"], "1.90 ± 0.02 (exact)"),
    "a tie": ([row("a", bits=1.9), row("b", bits=1.92)], 0, ["a", "b"], "does not decide"),
    "exact before a bound": (
        [row("a", bits=1.9), row("b", kind="lower bound", bits=2.4)], 0, ["a"], "Not ruled out: b, of which only",
    ),
    "a bound before exact": (
        [row("a", bits=1.9), row("b", kind="lower bound", bits=1.5)], 0, ["b"], "truth is better still",
    ),
    "an estimate is no guarantee": (
        [row("a", bits=1.9), row("b", kind="estimate", bits=1.5)], 0, ["a"], "b is an estimate",
    ),
    "only estimates": ([row("a", kind="estimate")], 0, ["a"], "err either way"),
    "no density": ([row("a", kind="none")], 0, [], "No system here has a density"),
    "fast but poor": (
        [row("a", frechet=1.0), row("b", frechet=9.0, rate=9e4)], 1, ["b"], "far from the best (Fréchet distance 9.00",
    ),
    "as fast": ([row("a", rate=1000), row("b", rate=1050)], 1, ["b", "a"], "does not decide"),
    "quality": ([row("a", frechet=1.0), row("b", frechet=2.0)], 2, ["a"], "1.00 ± 0.05"),
    "at the floor": ([row("a", frechet=0.31), row("b", frechet=2.0)], 2, ["a"], "sees no difference"),
    "nothing": ([failed()], 0, [], "No system finished"),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "need", "choice", "words"), ADVICE.values(), ids=ADVICE)
def test_advice(rows, need, choice, words):
    given = advice.recommendation(rows)[need]
    assert given.choice == choice
    assert words in given.text


def quality(*rows, **cells):
    """Rows whose measures differ as `measure=(a, b)` says; the advice on their samples."""
    for name, values in cells.items():
        for one, value in zip(rows, values, strict=True):
            floor = one["quality"].get(name, {"floor": 0.0})["floor"]
            one["quality"][name] = {"value": value, "error": 0.01, "floor": floor, "excess_error": 0.015}
    return advice.recommendation(list(rows))[2]


@pytest.mark.parametrize(
    ("frechet", "cells", "choice", "words"),
    [
        ((1.0, 2.0), {"recall": (0.8, 0.99)}, ["a"], "recall prefers b"),
        ((1.0, 2.0), {"memorisation": (0.9, 0.5)}, ["a"], "look for copies"),
        ((1.0, 1.01), {"two_sample_accuracy": (0.9, 0.6)}, ["b"], "not recommended: a is told from real in 0.900 of"),
        ((1.0, 1.01), {"two_sample_accuracy": (0.62, 0.6)}, ["a", "b"], "does not decide"),
        ((1.0, 2.0), {"coverage": (0.5, 0.9)}, [], "a covers 0.500 of the real examples, b 0.900"),
        ((1.0, 2.0), {"coverage": (0.89, 0.9)}, ["a"], "Fréchet distance 1.00"),
        ((1.0, 2.0), {"copies": (0.1, 0.0)}, [], "the nearest is b, at 2.00"),
        ((1.0, 2.0), {"copies": (0.02, 0.0)}, ["a"], "Fréchet distance 1.00"),
        ((1.0, 2.0), {"copies": (0.0, 0.9), "coverage": (0.5, 0.9)}, ["a"], "Fréchet distance 1.00"),
    ],
)
def test_advice_on_measures_that_disagree(frechet, cells, choice, words):
    """What copies is not held against others."""
    given = quality(*(row(label, frechet=value) for label, value in zip("ab", frechet, strict=True)), **cells)
    assert given.choice == choice
    assert words in given.text


def test_the_fastest_is_doubted_where_other_measures_speak_against_it():
    quick, slow = row("quick", frechet=1.0, rate=9e4), row("slow", frechet=1.01)
    quality(quick, slow, two_sample_accuracy=(0.9, 0.6))
    text = advice.recommendation([quick, slow])[1].text
    assert "Yet quick is told from real in 0.900 of cases" in text
    assert "slow is the fastest" in text
    assert "Yet" not in advice.recommendation([row("quick", rate=9e4), row("slow")])[1].text


def test_how_far_the_advice_goes():
    """Runs with one seed, systems with several."""
    assert "this run alone" in advice.recommendation([row("a"), row("b")])[-1].text
    several = advice.recommendation([row(label, seed=seed, bits=2 + seed) for label in "ab" for seed in range(3)])
    assert several[-1].text == "Differences are told apart beyond the spread of 3 seeds or more."


def test_terminal():
    console = Console(width=130, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal.table(ELEVEN))
    text = console.export_text()
    assert "≤ 2.31 (bound, 16 samples)" in text
    assert "realnvp: diverged: the loss of model was not finite" in text
    assert "floor: real data" in text
    assert "unnormalised" in text


@pytest.mark.parametrize("space", [IMAGE, PLANE, MIXED, TEXT, AUDIO], ids=lambda space: space.name)
def test_page_stands_alone_and_escapes(space):
    text = page.render(content(space, [*ELEVEN[:3], failed()]))
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import""", text)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert "<b>age" not in text
    assert "<i>labels" not in text
    assert text.count("<figure") >= 4


def test_nothing_is_best_of_one_row():
    assert 'class="best' not in page.render(content(rows=[row("a")])).split("<tbody>")[1].split("</tbody>")[0]


def test_grid_places_images():
    sheet = pictures.grid(np.stack([np.full((1, 2, 3), i, np.uint8) for i in range(3)]))
    assert sheet.shape == (5, 7, 4)
    assert sheet[0, 4, 0] == 1
    assert sheet[3, 0, 0] == 2
    assert sheet[2, :, 3].max() == 0  # the gap is transparent
    assert sheet[3, 4, 3] == 0  # so is what has no image


def test_plot_leaves_out_what_it_cannot_place():
    points = [plots.Point("a", "vae", 1, 2, 5), plots.Point("<b>", "own", 10, 0.1), plots.Point("c", "gan", np.nan, 1)]
    text = plots.scatter([*points, plots.Point("d", "gan", -1, 1)], plots.Axis("x", True), plots.Axis("y", True))
    assert text.count('class="name"') == 2
    assert "&lt;b&gt;" in text
    assert "nan" not in text
    assert plots.curve([(0, np.nan)], "vae", "x", "y") == ""


def test_names_that_would_cover_others_are_left_to_pointing():
    points = [plots.Point(f"system-{i}", "flow", 1 + 0.01 * i, 2 + i % 3) for i in range(60)]
    text = plots.scatter(points, plots.Axis("x"), plots.Axis("y"))
    assert text.count("<title>") == 60
    assert 3 <= text.count('class="name"') < 40


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
def test_browser_sorts_by_a_click(tmp_path):
    """The page opens from the file system, a click on a column changes the order, and nothing is complained of."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = page.write(content(), tmp_path / "report.html")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        tab = browser.new_page(viewport={"width": 390, "height": 800})
        complaints, requests = [], []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(path.as_uri())
        labels = lambda: tab.locator("#results tbody th").all_inner_texts()  # noqa: E731
        before = labels()
        button = tab.locator("#results thead button", has_text="Fréchet")
        button.click()
        by_quality = labels()
        button.click()
        reversed_ = labels()
        tab.locator("#results thead button", has_text="System").click()
        by_name = labels()
        width = tab.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert before == [r["label"] for r in ELEVEN]
    assert by_quality[:2] == ["gated-pixelcnn", "transformer"]
    assert reversed_[:2] == ["rbm", "igebm"]
    assert by_quality[-1] == reversed_[-1] == "realnvp"  # what has no value stays at the end
    assert by_name == sorted(before)
    assert width <= 390
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
