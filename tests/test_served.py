"""The page that is served while rows come in, and the files behind it: what runs, and all rows in one."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from fivefold.cli.app import app
from fivefold.comparison.board import Board
from fivefold.errors import RunError
from fivefold.files import write_json
from fivefold.report import folder, page, progress, rows, serve, table, write_table
from tests.test_report import CHROMIUM, ELEVEN, IMAGE, QUIET, content, failed, row


def begin(place, space=IMAGE):
    """A comparison's folder with no row yet."""
    for part in ("rows", "runs", "logs"):
        (place / part).mkdir(parents=True)
    write_json(place / folder.SETTINGS, content(space).settings)
    folder.write_arrays(place / "real.npz", {"samples": content(space).real})
    return place


def finish(place, one, position=0.0):
    """A row comes in, its pictures first, as from a worker."""
    path = place / "rows" / f"{folder.file_name(one['label'], one['seed'])}.json"
    if one["status"] == "ok":
        rng = np.random.default_rng(0)
        pictures = {"samples": rng.integers(0, 17, (16, 1, 8, 8)), "nearest": rng.integers(0, 17, (12, 1, 8, 8))}
        shared = {"log_prob": rng.normal(size=30).astype(np.float32), "log_prob_index": np.arange(30, dtype=np.int32)}
        folder.write_arrays(path.with_suffix(".npz"), pictures | shared)
    write_json(path, one | {"position": position})


def job(name, **about):
    """A job as a crew has it."""
    one = {"label": name, "family": "flow", "seed": 0}
    return {
        "name": f"{name}-seed0",
        "row": one,
        "kind": "train",
        "budget": "30s",
        "tune": None,
        "within": None,
        **about,
    }


# --- all rows in one file -----------------------------------------------------------------------


def test_rows_are_the_same_from_one_file_as_from_many(tmp_path):
    place = begin(tmp_path / "c")
    for position, one in enumerate(ELEVEN):
        finish(place, one, position)
    first = rows.Shelf(place)
    before = first.read()
    first.keep()
    for path in (place / "rows").glob("*.npz"):
        path.unlink()  # from here on they can only be in the one file
    after = rows.Shelf(place).read()
    assert [one["label"] for one in after] == [one["label"] for one in ELEVEN]
    for a, b in zip(before, after, strict=True):
        assert {k: v for k, v in a.items() if k != "shared"} == {k: v for k, v in b.items() if k != "shared"}
        assert a.get("shared", {}).keys() == b.get("shared", {}).keys()
        for name, shared in a.get("shared", {}).items():
            assert np.array_equal(shared.terms, b["shared"][name].terms)
            assert np.array_equal(shared.examples, b["shared"][name].examples)
    assert "loss" not in before[0]["curves"]  # which an opened row reads from its own file


def test_a_row_that_changed_or_went_is_not_taken_from_the_file(tmp_path):
    place = begin(tmp_path / "c")
    for one in (row("a", frechet=1.0), row("b"), row("c")):
        finish(place, one)
    rows.write_page(rows.Shelf(place))
    finish(place, row("a", frechet=7.0))
    (place / "rows" / "b-seed0.json").unlink()
    finish(place, row("d"))
    found = {one["label"]: one for one in rows.Shelf(place).read()}
    assert sorted(found) == ["a", "c", "d"]
    assert found["a"]["quality"]["frechet"]["value"] == 7.0


def test_reading_again_reads_what_is_new_alone(tmp_path, monkeypatch):
    place = begin(tmp_path / "c")
    read, usual = [], rows.read_json
    monkeypatch.setattr(rows, "read_json", lambda path: (read.append(path.stem), usual(path))[1])
    shelf = rows.Shelf(place)
    for name in "abc":
        finish(place, row(name))
        shelf.read()
    assert read == ["a-seed0", "b-seed0", "c-seed0"]


def test_a_damaged_file_is_made_anew_and_one_being_written_left_alone(tmp_path):
    place = begin(tmp_path / "c")
    finish(place, row("a"))
    (place / "rows" / ".b-seed0.1-host.writing.json").write_text("{")
    (place / rows.FILE).write_bytes(b"PAR1 and no more")
    shelf = rows.Shelf(place)
    assert [one["label"] for one in shelf.read()] == ["a"]
    shelf.keep()
    assert pd.read_parquet(place / rows.FILE)["name"].tolist() == ["a-seed0"]


def test_without_pyarrow_there_is_no_file_and_a_sentence(tmp_path, monkeypatch):
    place = begin(tmp_path / "c")
    finish(place, row("a"))
    monkeypatch.setattr(rows, "has_parquet", lambda: False)
    monkeypatch.setattr(table, "has_parquet", lambda: False)
    rows.write_page(rows.Shelf(place))
    assert not (place / rows.FILE).exists()
    assert "Parquet needs pyarrow" in page.render(rows.content(rows.Shelf(place)), served="1")
    monkeypatch.setattr(pd.DataFrame, "to_parquet", lambda *a, **k: (_ for _ in ()).throw(ImportError("no pyarrow")))
    with pytest.raises(RunError, match=r"pip install 'fivefold\[parquet\]'"):
        write_table(place, "parquet")


@pytest.mark.parametrize("kind", ["csv", "md", "parquet"])
def test_the_table_as_a_file(tmp_path, kind):
    place = begin(tmp_path / "c")
    for position, one in enumerate([row("a|b", bits=1.9), row("vae", "vae", "lower bound", 2.4), failed("gan")]):
        finish(place, one, position)
    path = write_table(place, kind)
    assert path == place / f"table.{kind}"
    if kind == "md":
        head, rule, first, *_, last, floor = path.read_text().splitlines()
        assert head.startswith("| System | Bits per dimension | Fréchet distance |")
        assert first.startswith(r"| a\|b | 1.90 (exact) |")
        assert last.startswith("| gan | failed: ValueError: <script>")
        assert floor.startswith("| floor: real data |")
        assert rule.count("|") == head.count("|")
        return
    frame = pd.read_csv(path) if kind == "csv" else pd.read_parquet(path)
    assert frame["system"].tolist() == ["a|b", "vae", "gan"]
    assert frame["Bits per dimension"].tolist()[:2] == [1.9, 2.4]
    assert frame["Bits per dimension, kind"].tolist()[:2] == ["exact", "lower bound"]
    assert frame["Fréchet distance, error"][0] == pytest.approx(0.05)
    assert frame["status"].tolist() == ["ok", "ok", "failed"]
    assert np.isnan(frame["Fréchet distance"][2])


def test_of_many_systems_the_best_are_drawn_and_all_are_in_the_table():
    many = [row(f"s{i}", bits=2 + i / 1000, frechet=1 + (i * 7 % 300) / 100, rate=1000 + i) for i in range(300)]
    text = page.render(page.Content(content().settings, many, content().real, {}))
    assert len(json.loads(text.split('id="data">')[1].split("</script>")[0])["lines"]) == 300
    assert text.count("<template") == 60
    assert "60 of the systems alone" in text
    found = {label for label in (f"s{i}" for i in range(300)) if f'<template data-label="{label}"' in text}
    assert {"s0", "s299", "s1"} <= found  # best bits, fastest, and the next of the density


# --- what runs ----------------------------------------------------------------------------------


def written(place, until=lambda found: True):
    for _ in range(100):
        found = progress.read(place)
        if found and until(found):
            return found
        time.sleep(0.03)
    raise AssertionError("nothing was written")


def test_the_board_says_what_runs_where_and_is_gone_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("fivefold.comparison.board._EVERY", 0.01)
    first, second = job("a"), job("b")
    with Board(tmp_path, [first, second, job("c")], 2) as board:
        board.tell(first, {"node": "node7"})
        board.tell(second, {"node": os.uname().nodename})
        board.tell(first, {"phase": "training", "progress": 0.5})
        found = written(tmp_path, lambda p: p.running and p.running[0].progress)
        assert [(one.label, one.where) for one in found.running] == [("a", "node7"), ("b", os.uname().nodename)]
        assert (found.total, found.finished, found.at_once, found.mean) == (3, 0, 2, 50.0)  # 30 s and 20 s to measure
        board.end(first["name"])
        found = written(tmp_path, lambda p: p.finished == 1)
        assert [one.label for one in found.running] == ["b"]
        assert found.mean < 5
    assert progress.read(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_finalists_of_a_race_are_only_measured(tmp_path):
    """Whose budget is no time that one could wait for."""
    finalist = job("a", budget="up to 30s", within={"seconds": 60.0, "systems": ["a"]})
    assert Board(tmp_path, [finalist], 1).expected == (20.0, 20.0)


def test_what_is_left_follows_the_rate_of_training():
    """A quarter in 10 s: another 30 s and 5 s to measure; two more jobs of 45 s wait, two run at a time."""
    one = progress.Job("a", "a", "flow", 0, "here", since=95.0, phase="training", progress=0.25, first=(100.0, 0.0))
    other = progress.Job("b", "b", "flow", 0, "here", since=60.0, phase="measuring", progress=1.0, trained=107.0)
    assert one.left(110.0, mean=45.0, after=5.0) == pytest.approx(35.0)
    assert other.left(110.0, mean=45.0, after=5.0) == pytest.approx(2.0)
    assert progress.Progress(6, 2, 2, 45.0, 5.0, [one, other]).left(110.0) == pytest.approx((35 + 2 + 90) / 2)
    resumed = one._replace(progress=0.75, first=(100.0, 0.5))  # went on from a half: its rate is that of now
    assert resumed.left(110.0, mean=45.0, after=0.0) == pytest.approx(10.0)


def test_what_a_killed_crew_left_is_not_said_to_run(tmp_path):
    write_json(tmp_path / folder.PROGRESS, {**progress.Progress(1, 0, 1, 1.0, 1.0, [])._asdict(), "running": []})
    assert progress.read(tmp_path) is not None
    long_ago = time.time() - 2 * progress.OLD
    os.utime(tmp_path / folder.PROGRESS, (long_ago, long_ago))
    assert progress.read(tmp_path) is None


# --- the server ---------------------------------------------------------------------------------


@contextmanager
def served(place):
    """The address of a server of a folder; it looks anew at every request."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "EVERY", 0.05)
        patch.setattr(serve, "SHARE", 1.0)
        with serve.serving(serve.server(place, 0)) as address:
            yield address


def get(address, path="", **headers):
    with urllib.request.urlopen(urllib.request.Request(address + path, headers=headers), timeout=10) as answer:
        return answer.read()


def test_the_served_page_grows(tmp_path):
    place = begin(tmp_path / "c")
    with served(place) as address:
        assert address.startswith("http://127.0.0.1:")
        version = json.loads(get(address, "live"))["version"]
        assert "No system finished" in get(address).decode()
        finish(place, row("vae <b>", "vae"))
        until = time.monotonic() + 30
        while json.loads(get(address, "live"))["version"] == version and time.monotonic() < until:
            time.sleep(0.05)
        text = get(address).decode()
        assert '"label":"vae \\u003cb\\u003e"' in text
        assert "<template" not in text  # what a row opens into is asked for
        detail = get(address, "detail?label=vae+%3Cb%3E").decode()
        assert "training loss" in detail
        assert "nearest to it" in detail
        assert pd.read_parquet(io.BytesIO(get(address, "table.parquet")))["system"].tolist() == ["vae <b>"]


def test_nothing_is_worked_out_while_nobody_looks_and_little_else(tmp_path, monkeypatch):
    place = begin(tmp_path / "c")
    finish(place, row("a"))
    made = []
    monkeypatch.setattr(serve.page, "render", lambda *a, **k: (made.append(1), time.sleep(0.05), "page")[2])
    found = serve.Served(place)
    assert made == []
    for i in range(5):  # 50 ms of work are not done again within a second, whatever comes in
        finish(place, row(f"b{i}"))
        found.html()
    assert made == [1]


@pytest.mark.parametrize(
    ("path", "headers", "code"),
    [
        ("detail?label=nobody", {}, 404),
        ("../comparison.json", {}, 404),
        ("comparison.json", {}, 404),
        ("", {"Host": "evil.example:80"}, 403),
    ],
)
def test_nothing_else_is_served(tmp_path, path, headers, code):
    place = begin(tmp_path / "c")
    with served(place) as address, pytest.raises(urllib.error.HTTPError) as caught:
        get(address, path, **headers)
    assert caught.value.code == code


def test_ports_and_folders_that_cannot_be_served(tmp_path):
    with pytest.raises(RunError, match="is no comparison"):
        serve.server(tmp_path)
    place = begin(tmp_path / "c")
    with serve.server(place, 0) as one:
        port = one.server_address[1]
        with pytest.raises(RunError, match=f"port {port} is taken"):
            serve.free_port(port)
    assert serve.free_port(port) == port


# --- in a browser -------------------------------------------------------------------------------


@contextmanager
def browser(scheme="light", width=1280):
    """A tab, and what it complained of."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        tab = found.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        complaints = []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        yield tab, complaints
        found.close()


def fits(tab):
    """Whether neither the page nor the table is wider than what is seen."""
    return tab.evaluate(
        "[document.documentElement, ...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)"
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
def test_browser_rows_come_in_and_are_sorted_opened_and_saved(tmp_path, monkeypatch):
    """A stand-in for a crew: rows come in one by one while the page is looked at."""
    monkeypatch.setattr("fivefold.comparison.board._EVERY", 0.05)
    place = begin(tmp_path / "c")
    go = threading.Semaphore(0)

    def crew():
        jobs = [job(one["label"]) for one in ELEVEN]
        with Board(place, jobs, 1) as board:
            for position, (one, its) in enumerate(zip(ELEVEN, jobs, strict=True)):
                board.tell(its, {"node": "here"})
                run = place / "runs" / its["name"]
                run.mkdir()
                marks = [{"seconds": s, "validation": 9.0, "distance": [9.0 - s, 0.1], "monitor": {}} for s in (1, 2)]
                (run / "log.jsonl").write_text("".join(json.dumps(mark) + "\n" for mark in marks))
                board.tell(its, {"phase": "training", "progress": 0.4})
                go.acquire(timeout=60)
                finish(place, one, position)
                board.end(its["name"])

    working = threading.Thread(target=crew)
    working.start()
    try:
        with served(place) as address, browser() as (tab, complaints):
            tab.goto(address)
            running, labels = tab.locator("#running summary"), tab.locator("#results tbody th")
            running.filter(has_text="rbm").filter(has_text="training").wait_for()
            assert "0 of 11 rows" in tab.locator("#running").inner_text()
            assert labels.count() == 0
            running.click()
            tab.locator("#running svg[aria-label^='validation distance']").wait_for()  # the curves so far
            for count in range(1, len(ELEVEN)):
                go.release()
                labels.nth(count - 1).wait_for()
            assert tab.locator("[data-part=pictures] figure").count() >= 8
            assert fits(tab)

            tab.locator("#results thead button", has_text="Fréchet").click()
            assert labels.all_inner_texts()[:2] == ["gated-pixelcnn", "transformer"]
            tab.locator("#results tbody button", has_text="vq-vae").click()
            opened = tab.locator("tr.detail")
            opened.locator("h4", has_text="nearest to it").wait_for()
            assert opened.locator("svg[aria-label^='training loss']").count() == 1
            go.release()  # the last row comes in while one is open: it stays open, and the order is kept
            labels.nth(10).wait_for()
            assert opened.locator("h4", has_text="nearest to it").count() == 1
            assert labels.all_inner_texts()[:2] == ["gated-pixelcnn", "transformer"]
            tab.locator("#running").wait_for(state="hidden")
            assert fits(tab)

            files = {}
            for name in ("CSV", "Markdown", "Parquet"):
                with tab.expect_download() as download:
                    tab.locator(".exports").get_by_text(name).click()
                files[name] = download.value.path().read_bytes()
            assert complaints == []
    finally:
        for _ in ELEVEN:
            go.release()
        working.join()
    mine = table.frame(rows.Shelf(place).read())
    theirs = list(csv.reader(io.StringIO(files["CSV"].decode())))
    assert theirs[0] == list(mine.columns)
    assert [line[0] for line in theirs[1:3]] == ["gated-pixelcnn", "transformer"]
    both = pd.read_csv(io.BytesIO(files["CSV"])).set_index("system").loc[mine["system"]].reset_index()
    pd.testing.assert_frame_equal(both, pd.read_csv(io.StringIO(mine.to_csv(index=False))))
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(files["Parquet"])), mine)
    assert "| gated-pixelcnn | **1.86 (exact)** |" in files["Markdown"].decode()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_the_file_by_keyboard(tmp_path, scheme):
    """Sorted, opened and its columns chosen by keys alone; what was chosen stands in the address and is kept."""
    made = content()
    for arrays in made.arrays.values():
        arrays["nearest"] = arrays["samples"][:12]
    path = page.write(made, tmp_path / "report.html")
    with browser(scheme) as (tab, complaints):
        tab.goto(path.as_uri())
        assert fits(tab)
        tab.locator("th[data-key=frechet] button").focus()
        tab.keyboard.press("Enter")
        assert tab.locator("th[data-key=frechet]").get_attribute("aria-sort") == "ascending"
        assert tab.evaluate("document.activeElement.closest('th').dataset.key") == "frechet"  # still there
        assert "Sorted by Fréchet distance, the best first" in tab.locator("#said").inner_text()
        tab.keyboard.press("Enter")
        assert tab.locator("th[data-key=frechet]").get_attribute("aria-sort") == "descending"
        tab.locator("button[data-open=ddpm]").focus()
        tab.keyboard.press("Space")
        assert tab.locator("button[data-open=ddpm]").get_attribute("aria-expanded") == "true"
        assert tab.locator("tr.detail figure img").count() == 2  # samples, and their nearest neighbours
        assert tab.locator("tr.detail code").inner_text().startswith("fivefold train ddpm")
        assert fits(tab)

        tab.locator("#columns summary").focus()
        tab.keyboard.press("Enter")
        tab.locator("#columns input[value=memorisation]").focus()
        tab.keyboard.press("Space")
        assert tab.locator("th[data-key=memorisation]").count() == 1
        assert tab.evaluate("document.activeElement.value") == "memorisation"
        tab.locator("#columns input[value=frechet]").uncheck()
        tab.keyboard.press("Escape")
        assert not tab.locator("#columns .choices").is_visible()
        address = tab.url
        tab.reload()
        assert tab.url == address
        assert tab.locator("th[data-key=memorisation]").count() == 1
        assert tab.locator("th[data-key=frechet]").count() == 0
        ink, paper = (tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
        assert complaints == []
    light = [sum(map(int, colour.strip("rgb()").split(",")[:3])) for colour in (ink, paper)]
    assert (light[0] < light[1]) is (scheme == "light")
    assert abs(light[0] - light[1]) > 500


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
def test_browser_finds_among_thousands(tmp_path):
    """Of thousands a hundred are drawn; the others on request, or found by name. What is not in the file says so."""
    many = [row(f"s{i}", frechet=1 + i / 100, bits=2 + i / 1000, rate=1000 - i / 10) for i in range(1200)]
    path = page.write(page.Content(content().settings, many), tmp_path / "report.html")
    with browser() as (tab, complaints):
        tab.goto(path.as_uri())
        lines = tab.locator("#results tbody th")
        assert lines.count() == 100
        tab.locator("#more").click()
        assert lines.count() == 200
        tab.locator("#find").fill("s1199")
        assert lines.all_inner_texts() == ["s1199"]
        tab.locator("button[data-open=s1199]").click()
        assert "not in the file" in tab.locator("tr.detail").inner_text()
        assert "13.0 ± 0.6" in tab.locator("tr.detail .figures").inner_text()  # its figures are
        assert fits(tab)
        assert complaints == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
def test_browser_a_real_comparison(tmp_path, monkeypatch):
    """From the command line: rows of trained systems come in, the page outlives the comparison and ends by Ctrl-C."""
    monkeypatch.chdir(tmp_path)
    port = serve.free_port(None)
    words = ["compare", "made", "dcgan", "--data", "digits", "--budget", "3s", "--out", "out", "--no-diagnostics"]
    start = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where tests run behind
    )
    start += "from fivefold.cli import main; main()"
    command = [sys.executable, "-c", start, *words, "--serve", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        with browser() as (tab, complaints):
            for _ in range(600):
                with contextlib.suppress(OSError):
                    get(f"http://127.0.0.1:{port}/")
                    break
                time.sleep(0.2)
            tab.goto(f"http://127.0.0.1:{port}/")
            tab.set_default_timeout(240_000)
            running = tab.locator("#running summary")
            running.first.wait_for()
            labels = tab.locator("#results tbody th")
            labels.nth(1).wait_for()
            tab.locator("#running").wait_for(state="hidden")
            assert sorted(labels.all_inner_texts()) == ["dcgan", "made"]
            tab.locator("#results tbody button", has_text="dcgan").click()
            tab.locator("tr.detail h4", has_text="nearest to it").wait_for()
            assert tab.locator("tr.detail svg[aria-label^='training loss']").count() == 1
            assert fits(tab)
            assert complaints == []
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert said.count(f"http://127.0.0.1:{port}/") == 2
    assert (tmp_path / "out" / "report.html").exists()
    assert not (tmp_path / "out" / folder.PROGRESS).exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "c", "--table", "csv"], "wrote c/table.csv"),
        (["report", "c"], "wrote c/report.html"),
        (["report", "nowhere", "--serve"], "nowhere is no comparison"),
        (["report", "c", "--table", "xlsx"], "'xlsx' is not one of"),
        (["report", "c", "--serve", "--port", "0"], "0 is not in the range"),
    ],
)
def test_commands(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    finish(begin(tmp_path / "c"), row("a"))
    done = CliRunner().invoke(app, words)
    assert said in done.output + str(done.exception)
