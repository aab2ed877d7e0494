"""A part of a run as a file: what it gives is what the run gives, its noise goes in, and what stops it is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fivefold
from fivefold import Density, Space, System, catalog
from fivefold.apps import export as exports
from fivefold.apps import lacking
from fivefold.apps.export import export_file, write
from fivefold.apps.parts import Given, Recorded
from fivefold.apps.tracing import LARGEST, MEMORY, trace
from fivefold.errors import OptionError, RunError, Unfit
from fivefold.space import Column
from fivefold.system import seeded
from tests.test_contract import build

DIGITS = Space("image", (1, 8, 8), levels=17, layout="HW")
TABLE = Space("table", (2,), columns=(Column("a", location=3.0, scale=1000.0), Column("b", scale=0.5)))
FORMATS = list(exports.FORMATS)


def export(system, part, to, path):
    if to == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    return write(trace(system, part), to, path)


def drawn(system, n, seed):
    """The noise of the system's own samples under a seed, in order, and these samples."""
    with seeded(seed), system.evaluating(), Recorded() as recorded:
        system._sample(n, None)
    return [draw.value for draw in recorded.draws], system.sample_encoded(n, seed=seed)


@pytest.mark.parametrize("to", FORMATS)
def test_samples_are_those_of_the_seed_whose_noise_goes_in(to, tmp_path):
    system = build("vae", DIGITS)
    found = export(system, "sample", to, tmp_path / f"file.{to}")
    assert found.interface["batch"] == {"least": 1, "most": LARGEST, "why": ""}
    assert [one["what"] for one in found.interface["inputs"]] == ["noise: standard normal", "noise: uniform on [0, 1)"]
    assert [one["shape"][0] for one in found.interface["inputs"]] == ["batch"] * 2
    for n in (1, 4, 9):
        noise, samples = drawn(system, n, seed=n)
        assert torch.equal(found.run(noise)[0], samples)


@pytest.mark.parametrize("to", FORMATS)
def test_densities_are_in_the_users_units(to, tmp_path):
    system = build("spline-flow", TABLE)
    found = export(system, "log_prob", to, tmp_path / f"file.{to}")
    users = np.random.default_rng(0).normal(size=(6, 2)) * [1000.0, 0.5] + [3.0, 0.0]
    (log_prob,) = found.run([TABLE.encode(users)])
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob.double(), system.log_prob(users), rtol=1e-4, atol=1e-4)
    assert found.interface["density"] == "exact"
    assert [one["name"] for one in found.interface["outputs"]] == ["log_prob"]


def test_a_bound_says_so_and_takes_its_noise(tmp_path):
    system = build("vae", DIGITS)
    found = export(system, "log_prob", "pt2", tmp_path / "file.pt2")
    outputs = {one["name"]: one["what"] for one in found.interface["outputs"]}
    assert "lower bound, 64 samples" in outputs["log_prob"]
    x = system.sample_encoded(7, seed=1)
    with seeded(0), Recorded() as recorded:
        wanted, error = system._log_prob(x, None)
    log_prob, standard_error = found.run([x, *(draw.value for draw in recorded.draws)])
    torch.testing.assert_close(log_prob, wanted)
    torch.testing.assert_close(standard_error, error)
    assert torch.equal(wanted.double(), system.score_encoded(fivefold.Batch(x)).log_prob)


def test_steps_lead_to_the_samplers_samples(tmp_path):
    system = build("ddpm", TABLE)
    system.eta = 1.0
    found = export(system, "step", "pt2", tmp_path / "file.pt2")
    noise, samples = drawn(system, 5, seed=3)
    times = torch.tensor(found.interface["times"])
    y, rest = noise[0] * found.interface["start"], iter(noise[1:])
    for t, s in zip(times[:-1].split(1), times[1:].split(1), strict=True):
        y, _ = found.run([y, t, s, next(rest)])
    _, x = found.run([y, times[-1:], times[-1:], torch.zeros_like(y)])
    torch.testing.assert_close(x, samples, rtol=1e-4, atol=1e-4)


def test_conditions_go_in(tmp_path):
    space = DIGITS.conditioned_on(fivefold.space.label_space(("a", "b", "c")))
    system = build("dcgan", space)
    found = export(system, "sample", "pt2", tmp_path / "file.pt2")
    assert found.interface["inputs"][0]["name"] == "condition"
    noise = torch.randn(2, system.latent)
    a, b = (found.run([torch.full((2, 1), float(code)), noise])[0] for code in (0, 1))
    with system.evaluating(), Given([noise]):
        assert torch.equal(b, system._sample(2, torch.ones(2, 1)))
    assert not torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    ("name", "part"),
    [
        *((name, part) for name in ("vae", "realnvp", "glow") for part in ("sample", "log_prob", "encode", "decode")),
        ("dcgan", "sample"),
        ("gated-pixelcnn", "log_prob"),
        ("ddpm", "step"),
    ],
)
def test_both_formats_of_the_six(name, part, to, tmp_path):
    """As they are, on digits; the export itself checks the file."""
    traced = trace(catalog.build(name, DIGITS), part)
    assert traced.batches.most >= MEMORY
    found = write(traced, to, tmp_path / f"file.{to}")
    inputs, outputs = traced.case(7)
    assert exports._difference(found.run(inputs), outputs) <= exports.TOLERANCE


# --- noise ----------------------------------------------------------------------------------------


def test_noise_is_recorded_as_torch_draws_it_and_given_back():
    p = torch.rand(6, 5)

    def draw():
        return [
            torch.randn(3), torch.rand(2, 2), torch.randint(2, 9, (7,)), torch.multinomial(p, 1), p.multinomial(1),
            torch.empty(4).exponential_(), torch.randn_like(p, dtype=torch.float64),
        ]  # fmt: skip

    with seeded(5):
        plain = draw()
    with seeded(5), Recorded() as recorded:
        kept = draw()
    with Given([one.value for one in recorded.draws]):
        again = draw()
    for one, two, three in zip(plain, kept, again, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    assert recorded.draws[2].law == "integers from 2 to 8"


# --- operations that ONNX lacks -------------------------------------------------------------------


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("unitriangular", [True, False])
@pytest.mark.parametrize("n", [1, 2, 7, 32])
def test_triangular_solutions(n, upper, left, unitriangular):
    a = (torch.eye(n) * 2 + 0.3 * torch.randn(3, n, n)).double()
    b = torch.randn(3, n, 4).double() if left else torch.randn(3, 4, n).double()
    options = {"upper": upper, "left": left, "unitriangular": unitriangular}
    wanted = torch.linalg.solve_triangular(a.triu() if upper else a.tril(), b, **options)
    torch.testing.assert_close(lacking.linalg_solve_triangular(a, b, **options), wanted)


def test_quantiles():
    p = torch.cat([torch.linspace(1e-6, 1 - 1e-6, 5001), 10.0 ** -torch.linspace(1, 30, 200)]).double()
    torch.testing.assert_close(lacking.special_ndtri(p), torch.special.ndtri(p), rtol=3e-7, atol=1e-9)
    x = torch.cat([torch.linspace(-0.999999, 0.999999, 5001), torch.logspace(-30, -1, 100)]).double()
    torch.testing.assert_close(lacking.erfinv(x), torch.erfinv(x), rtol=3e-7, atol=1e-30)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "size"), [(1, 1, 1, 8), (2, 1, 1, 8), (2, 0, 1, 9), (1, 2, 2, 7)]
)
def test_gradients_of_convolutions(stride, padding, dilation, size):
    x, weight = torch.randn(2, 4, size, size).double(), torch.randn(6, 2, 3, 3).double()
    step, pad, apart = [stride] * 2, [padding] * 2, [dilation] * 2
    out = torch.ops.aten.convolution(x, weight, None, step, pad, apart, False, [0, 0], 2)
    given = (torch.randn_like(out), x, weight, None, step, pad, apart, False, [0, 0], 2)
    wanted, *_ = torch.ops.aten.convolution_backward(*given, [True, False, False])
    found, *_ = lacking.convolution_backward(*given, [True, False, False])
    torch.testing.assert_close(found, wanted)
    assert lacking.convolution_backward(*given, [True, True, False]) is NotImplemented


# --- what stops an export -------------------------------------------------------------------------


class Odd(System):
    """Does what cannot be exported."""

    densities = {"table": Density.EXACT}

    def build(self) -> None:
        self.shift = nn.Parameter(torch.zeros(2))

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return torch.poisson(torch.ones(n, 2)) + self.shift

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if x.sum() > 1e9:
            return x.sum(1)
        return -x.square().sum(1)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("sample", r"sample of Odd cannot be exported: it draws by aten.poisson"),
        ("log_prob", r"log_prob of Odd cannot .* data-dependent .* at test_export.py:\d+ `if x.sum\(\) > 1e9:`"),
        ("encode", "Odd has no latent code"),
        ("step", "Odd is no diffusion"),
    ],
)
def test_what_stops_it_is_named(part, message, tmp_path):
    with pytest.raises((RunError, Unfit), match=message):
        export(Odd(TABLE), part, "pt2", tmp_path / "file.pt2")


def test_a_file_that_gives_something_else_is_not_kept(run, monkeypatch, tmp_path):
    def wrong(traced, path):
        right = exports._to_pt2(traced, path)
        return lambda tensors: [y + 1e-3 for y in right(tensors)]

    monkeypatch.setitem(exports.FORMATS, "pt2", wrong)
    with pytest.raises(RunError, match=r"the file is 1\.0e-03 from the run, more than 0.0001"):
        export_file(run, "encode", "pt2", tmp_path / "file.pt2")
    assert not list(tmp_path.iterdir())


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "flow"
    x = np.random.default_rng(0).normal(size=(60, 2))
    fivefold.fit("nice", x, out=out, budget="2steps", evaluations=1, hidden=8)
    return out


def test_a_file_and_what_goes_in_beside_it(run):
    said = export_file(run, "encode", "pt2")
    path, described = run.parent / "flow-encode.pt2", json.loads((run.parent / "flow-encode.json").read_text())
    assert f"wrote {path} and flow-encode.json; batch: any" in said
    assert "in  x float32 (batch, 2): encoded examples" in said
    x = torch.randn(3, 2)
    with torch.no_grad():
        wanted = fivefold.load(run)._encode(x, None)
    torch.testing.assert_close(torch.export.load(path).module()(x)[0], wanted)
    assert Space.from_json(described["space"]).shape == (2,)
    with pytest.raises(RunError, match=r"flow-encode.pt2 exists; choose another --out, or --force"):
        export_file(run, "encode", "pt2")
    export_file(run, "encode", "pt2", force=True)


@pytest.mark.parametrize(
    ("part", "to", "out", "message"),
    [
        ("score", "pt2", "a.pt2", "no part 'score' to export: choose one of sample, log_prob"),
        ("sample", "tflite", "a.tflite", "cannot export to 'tflite': choose one of onnx, pt2"),
        ("sample", "pt2", "a.onnx", r"ends in .pt2, got a.onnx"),
        ("sample", "pt2", "no/a.pt2", r"the folder .*no does not exist"),
    ],
)
def test_refusals(run, part, to, out, message, tmp_path):
    with pytest.raises((OptionError, RunError), match=message):
        export_file(run, part, to, tmp_path / out)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_a_sentence(run, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(RunError, match=r"ONNX needs .*onnxruntime.*: pip install 'fivefold\[export\]'"):
        export_file(run, "encode", "onnx", tmp_path / "a.onnx")
