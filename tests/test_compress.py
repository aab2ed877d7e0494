"""Lossless compression: exact round trips of the size the model says; damaged and foreign files are refused."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import fivefold
from fivefold import Space, catalog
from fivefold.apps.compress import MAGIC, CompressionError, _Decoder, _Encoder, compress, decompress
from fivefold.cli.app import app, main
from fivefold.errors import RunError, Unfit
from fivefold.flow.discrete_flow import DiscreteFlow
from fivefold.flow.idf import Idf
from fivefold.space import Column, LeftOut, label_space
from fivefold.tools.laws import IntegerLogistics, Levels

IMAGES = Space("image", (1, 8, 8), levels=17, layout="HW")
MIXED = Space(
    "table",
    (3,),
    frame=True,
    columns=(
        Column("count", "integer", dtype="int64", location=7.0, levels=50),
        Column("kind", "categorical", "object", levels=3, categories=("a", "b", "c")),
        Column("flag", "integer", dtype="int64", levels=2),
    ),
)
SYSTEMS = {
    "idf": (Idf, IMAGES, {}),
    "idf, all integers": (Idf, IMAGES, {"wrap": False}),
    "idf++": (Idf, IMAGES, {"restore": True, "rezero": True, "normed": True}),
    "idf, colours": (Idf, Space("image", (3, 5, 6), levels=256), {"wrap": False}),
    "idf, a table": (Idf, MIXED, {}),
    "discrete-flow": (DiscreteFlow, MIXED, {}),
    "discrete-flow, text": (DiscreteFlow, Space("text", (9,), levels=4, symbols="abcd", dtype="str"), {}),
}


def build(name, spread=0.2, condition=None):
    torch.manual_seed(0)
    cls, space, options = SYSTEMS[name]
    sizes = {"hidden": 8, "depth": 2, "layers": 2} if cls is Idf else {"hidden": 16}
    system = cls(space.conditioned_on(condition), **sizes, **options)
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return system.eval()


def examples(space, n, seed=0):
    generator = np.random.default_rng(seed)
    x = torch.tensor(np.stack([generator.integers(k, size=n) for k in space.dim_levels], 1)).view(n, *space.shape)
    return space.decode(x.float() if space.columns else x)


def same(a, b):
    if isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b)
        return True
    return a == b if isinstance(a, list) else np.array_equal(a, b) and a.dtype == b.dtype


@pytest.mark.parametrize("name", SYSTEMS)
def test_comes_back_exactly_in_the_size_that_the_model_says(name):
    """In uneven batches; a header of a few hundred bytes and at most 1 % above -log2 p."""
    system = build(name)
    data = examples(system.space, 257)
    made = compress(system, data, batch_size=100)
    assert same(data, decompress(system, made.data))
    exact = -system.log_prob(data).sum().item() / math.log(2) / 8
    assert -made.nats / math.log(2) / 8 == pytest.approx(exact, rel=1e-4)
    assert made.header_bytes < 300
    assert len(made.data) - made.header_bytes < 1.01 * exact + 8
    assert made.data == compress(system, data, batch_size=100).data


def test_the_file_is_as_small_as_the_law_where_samples_follow_it():
    """Samples of the model itself: their size is its entropy, to 1 %."""
    system = build("idf")
    made = compress(system, system.sample(400, seed=0))
    bits = 8 * (len(made.data) - made.header_bytes)
    assert bits == pytest.approx(-made.nats / math.log(2), rel=0.01)


def test_whole_numbers_far_from_their_law_come_back():
    law = IntegerLogistics(torch.zeros(5, 2), torch.randn(5, 2), torch.randn(5, 2))
    for z in (torch.tensor([0.0, 1e9, -3e12, 7, -1]).double(), torch.zeros(5).double()):
        encoder = _Encoder()
        encoder.waiting = iter([z])
        encoder(law)
        assert torch.equal(_Decoder(encoder.words())(law), z)
    encoder.waiting = iter([torch.full((5,), 1e17).double()])
    with pytest.raises(CompressionError, match="too far"):
        encoder(law)


def test_values_that_cannot_be_cost_nothing():
    law = Levels(torch.tensor([[0.0, -torch.inf, -torch.inf, -torch.inf]]).expand(1000, 4))
    encoder = _Encoder()
    encoder.waiting = iter([torch.zeros(1000, dtype=torch.long)])
    encoder(law)
    assert len(encoder.words()) <= 8


@pytest.mark.parametrize("name", ["idf", "discrete-flow"])
def test_a_condition_is_kept(name):
    system = build(name, condition=label_space(("a", "b", "c")))
    data, labels = examples(system.space, 40), ["a", "b", "c", "a"] * 10
    made = compress(system, data, labels)
    assert same(data, decompress(system, made.data))
    assert -made.nats == pytest.approx(-system.log_prob(data, labels).sum().item(), rel=1e-4)
    with pytest.raises(Unfit, match="condition"):
        compress(system, data)


def test_what_the_model_leaves_out_is_not_lost_in_silence():
    system = build("idf, a table")
    system.data_space = replace(MIXED, made=(LeftOut("row", 0, start=9),))
    with pytest.raises(Unfit, match="row would not come back"):
        compress(system, MIXED.decode(torch.zeros(3, 3)))


def test_damaged_and_foreign_files_are_refused():
    system, other = build("idf"), build("idf", spread=0.1)
    good = compress(system, examples(IMAGES, 30)).data
    for bad in (b"", b"PNG", good[:5], good[:10], good[:-1], good + b"\0", good[: len(good) // 2]):
        with pytest.raises(CompressionError, match=r"not a file|truncated"):
            decompress(system, bad)
    for place in range(0, len(good), 37):
        changed = good[:place] + bytes([good[place] ^ 64]) + good[place + 1 :]
        with pytest.raises(CompressionError, match=r"not a file|truncated or changed"):
            decompress(system, changed)
    with pytest.raises(CompressionError, match="another model"):
        decompress(other, good)
    with pytest.raises(Unfit, match="idf and discrete-flow do"):
        decompress(catalog.build("made", IMAGES, hidden=4), good)


def test_numbers_that_differ_are_noticed(monkeypatch):
    """As on another machine: the laws are not those of the encoder, and what comes out is not given."""
    system = build("idf")
    made = compress(system, examples(IMAGES, 30))
    law = type(system.stages[0].law)
    forward = law.forward
    monkeypatch.setattr(law, "forward", lambda self, h, c: forward(self, h + 0.01, c))
    with pytest.raises(CompressionError, match="decompress where it was compressed"):
        decompress(system, made.data)


def test_data_outside_the_space_are_refused():
    with pytest.raises(fivefold.data.DataError, match=r"0\.\.16"):
        compress(build("idf"), np.full((2, 8, 8), 17))


# --- files and the command line -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run of idf on 60 images, and the file of them."""
    folder = tmp_path_factory.mktemp("runs")
    images = np.random.default_rng(0).integers(0, 4, (60, 4, 4), dtype=np.uint8)
    np.savez(folder / "images.npz", x=images)
    options = {"hidden": 4, "depth": 1, "layers": 1, "budget": "3steps", "evaluations": 1}
    fivefold.fit("idf", fivefold.load_data(folder / "images.npz"), out=folder / "idf", **options)
    fivefold.fit("made", fivefold.load_data(folder / "images.npz"), out=folder / "made", hidden=4, budget="1steps")
    return folder, images


def command(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_commands_round_trip(run, tmp_path):
    folder, images = run
    said = command("compress", folder / "idf", folder / "images.npz", "--out", tmp_path / "small.5fold")
    size = (tmp_path / "small.5fold").stat().st_size
    assert f"compressed 60 examples of {folder / 'images.npz'} to {size:,} bytes" in said
    assert "bits per dimension" in said
    command("decompress", folder / "idf", tmp_path / "small.5fold", "--out", tmp_path / "again.npz")
    with np.load(tmp_path / "again.npz") as archive:
        assert np.array_equal(archive["x"], images)
        assert archive["x"].dtype == images.dtype


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compress", "{made}", "{images}", "--out", "a.bin"], "Made cannot compress"),
        (["compress", "{idf}", "nowhere.npz", "--out", "a.bin"], "nowhere.npz"),
        (["compress", "{idf}", "digits", "--out", "a.bin"], "expected images of shape"),
        (["compress", "{idf}", "{images}", "--out", "no/a.bin"], "make it first"),
        (["decompress", "{idf}", "{images}", "--out", "a.npz"], "not a file that fivefold compress wrote"),
        (["decompress", "{idf}", "nowhere", "--out", "a.npz"], "cannot be read"),
        (["decompress", "{idf}", "{images}", "--out", "a.png"], "choose a suffix of .npz"),
        (["decompress", "{idf}", "{images}", "--out", "a.csv"], "choose a suffix of"),
    ],
)
def test_errors_are_one_clear_line_and_leave_no_file(run, words, message, capsys, monkeypatch, tmp_path):
    folder, _ = run
    named = {"made": folder / "made", "idf": folder / "idf", "images": folder / "images.npz"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fivefold", *(word.format(**named) for word in words)])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.iterdir())


def test_a_missing_coder_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(RunError, match=r"fivefold\[compression\]"):
        compress(build("idf"), examples(IMAGES, 2))


def test_the_magic_number_is_of_bytes_that_no_text_has():
    assert len(MAGIC) == 8
    assert b"\0" in MAGIC


def test_columns_that_are_more_than_levels_are_refused():
    space = replace(MIXED, columns=tuple(replace(c, missing=c.kind == "integer") for c in MIXED.columns))
    system = catalog.build("idf", space)
    with pytest.raises(Unfit, match="more to the model than a level each"):
        compress(system, space.decode(torch.zeros(3, 3)))
