"""What every system promises, for every file in the family folders: a new one is tested the moment it exists."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import fivefold
from fivefold import Density, Space, catalog
from fivefold.errors import Stopped, Unfit, Untrusted
from fivefold.evaluation.features import fit_features
from fivefold.options import Configured, class_in, options_of, presets_of
from fivefold.space import Batch, Column, label_space
from fivefold.tools.baselines import IndependentDims
from fivefold.tools.metrics import frechet_distance
from fivefold.training.fit import fit, resume
from fivefold.training.options import options
from tests.systems import follow
from tests.test_awake import LEARNT

IDS = list(catalog.entries())
SMALL = {  # options that make a system small, where it has them
    "width": 8, "hidden": 16, "channels": 8, "layers": 2, "heads": 2, "blocks": 1, "latent": 4, "depth": 1, "codes": 8,
    "code_width": 4, "score_samples": 64, "chain_steps": 3, "sample_steps": 5, "sampling_steps": 5, "timesteps": 20,
    "score_steps": 20, "scoring_steps": 2, "buffer_size": 64, "chains": 32, "ais_steps": 200, "ais_chains": 50,
    "dropout": 0.0, "bins": 4, "score_chains": 64,
}  # fmt: skip
TINY = Space("image", (1, 2, 2), levels=3, layout="HW")  # 81 images: a density can be summed
RNG = np.random.default_rng(0)


def small(name: str) -> dict:
    """Options that make it small, and the systems in its slots."""
    return _small(catalog.class_of(name))


def _small(cls: type) -> dict:
    chosen = {}
    for key, option in options_of(cls).items():
        if key in SMALL:
            chosen[key] = SMALL[key] if option.default is None else type(option.default)(SMALL[key])
        elif option.needs is not None and issubclass(class_in(option.default, option.needs), Configured):
            inner = _small(class_in(option.default, option.needs))
            chosen[key] = replace(option.default, options={**option.default.options, **inner})
    return chosen


def build(name: str, space: Space, seed: int = 0) -> fivefold.System:
    """A small system whose parameters were moved from their start, which may be a special case (zeros)."""
    torch.manual_seed(seed)
    system = catalog.build(name, space, **small(name)).eval()
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return system


def pairs(kind: str) -> list[tuple[str, str]]:
    return [name for name in IDS if kind in catalog.entries()[name].densities]


DATA = {
    "image": lambda: RNG.integers(0, 256, (60, 4, 4, 3), dtype=np.uint8),
    "table": lambda: np.stack([RNG.normal(size=60), RNG.normal(size=60) * 1000], 1),
    "text": lambda: ["".join(RNG.choice(list("abc "), 12)) for _ in range(60)],
    "audio": lambda: (RNG.normal(size=(60, 16)) * 1000).astype(np.int16),
}
WHOLE = {
    "argmax-flow",
    "boltzmann-machine",
    "discrete-ebm",
    "discrete-flow",
    "idf",
    "multinomial-diffusion",
}  # whose tables have whole numbers and categories alone
REAL = [name for name in pairs("table") if name not in WHOLE]


def data_of(kind: str, name: str = "") -> fivefold.Data:
    if kind == "table" and name in WHOLE:
        return fivefold.load_data(RNG.integers(0, (5, 3), (60, 2)))
    if kind == "audio":
        space = Space("audio", (16,), levels=65536, rate=8000, dtype="int16")
        x = space.encode(DATA[kind]())
        parts = [fivefold.data.Split(20, x[i : i + 20]) for i in (0, 20, 40)]
        return fivefold.Data("sound", space, *parts, "fingerprint")
    return fivefold.load_data(DATA[kind]())


CASES = [(name, kind) for name in IDS for kind in catalog.entries()[name].densities]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_trains_samples_and_scores(name, kind):
    """On every kind of space it names: two steps, samples in the data's own form, a density of its kind."""
    data = data_of(kind, name)
    system = fit(name, data, budget="2steps", batch_size=8, evaluations=1, **small(name))
    first, again, other = system.sample(5, seed=1), system.sample(5, seed=1), system.sample(5, seed=2)
    x = data.space.encode(first)  # refuses what is outside the space
    assert x.shape == (5, *data.space.shape)
    assert type(first) is type(data.space.decode(data.test.spread(3).x))
    assert torch.equal(x, data.space.encode(again))
    assert not torch.equal(x, data.space.encode(other))
    assert system.sample_evaluations >= 1
    if system.density is Density.NONE:
        with pytest.raises(Unfit, match="no density"):
            system.log_prob(first)
        return
    score = system.score(data.space.decode(data.train.spread(5).x))
    assert score.log_prob.shape == (5,)
    assert score.log_prob.dtype == torch.float64
    assert score.log_prob.isfinite().all()
    assert (score.standard_error >= 0).all()
    values = [system.score_encoded(data.test.spread(6), seed=seed).log_prob for seed in (0, 0)]
    assert torch.equal(*values)


@pytest.mark.parametrize("name", [name for name in IDS if "image" in catalog.entries()[name].densities])
def test_density_on_an_enumerable_space(name):
    """Exact densities sum to 1, bounds to at most 1, estimates to 1 within their error."""
    system = build(name, TINY)
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 1, 2, 2)
    if system.density in (Density.NONE, Density.UNNORMALISED):
        assert system.density.comparable is False
        return
    scores = [system.score_encoded(Batch(every))]
    if system.noisy_log and scores[0].standard_error.mean() > 0.5:  # unbiased is the logarithm: of its mean
        scores += [system.score_encoded(Batch(every), seed=seed) for seed in range(1, 8)]
    masses = torch.stack([score.log_prob for score in scores]).mean(0).exp()
    errors = torch.stack([score.standard_error for score in scores]).square().mean(0).div(len(scores)).sqrt()
    total, error = masses.sum().item(), (masses * errors).sum().item()
    if system.density is Density.EXACT:
        assert total == pytest.approx(1, abs=1e-4)
    elif system.density is Density.ESTIMATE:
        assert abs(total - 1) < 3 * error + 1e-3
    else:
        independent = (masses * errors).square().sum().sqrt().item()
        assert 1e-6 < total < 1 + 3 * independent + 1e-4


@pytest.mark.parametrize("name", [n for n in IDS if catalog.entries()[n].densities.get("image") == "exact"])
def test_samples_follow_the_density(name):
    """A chi-square test over the 81 images, at 1 in 10,000."""
    system = build(name, TINY)
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 1, 2, 2)
    expected = system.score_encoded(Batch(every)).log_prob.exp().numpy() * 5000
    codes = system.sample_encoded(5000, seed=0).flatten(1) @ torch.tensor([27, 9, 3, 1])
    assert follow(np.bincount(codes.numpy(), minlength=81), expected)


@pytest.mark.parametrize(
    "name", [n for n in pairs("table") if catalog.entries()[n].densities["table"] == "exact" and n not in WHOLE]
)
def test_table_density_integrates_to_one_in_the_users_units(name):
    columns = (Column("a", location=3.0, scale=2.0), Column("b", location=-1.0, scale=0.5))
    system = build(name, Space("table", (2,), columns=columns))
    a, b = np.linspace(3 - 30, 3 + 30, 320), np.linspace(-1 - 7.5, -1 + 7.5, 320)
    grid = np.stack(np.meshgrid(a, b, indexing="ij"), -1).reshape(-1, 2)
    density = system.score(grid, batch_size=50_000).log_prob.exp()
    assert density.sum().item() * (a[1] - a[0]) * (b[1] - b[0]) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "name", [n for n in pairs("table") if catalog.entries()[n].densities["table"] != "none" and n not in WHOLE]
)
def test_units_move_the_density_by_their_logarithm(name):
    """A table in metres and the same in millimetres differ by exactly ln 1000 a column."""
    x = RNG.normal(size=(80, 2))
    values = []
    for factor in (1.0, 1000.0):
        data = fivefold.load_data(x * factor)
        system = fit(name, data, budget="2steps", evaluations=1, **small(name))
        values.append(system.log_prob(x[:9] * factor))
    assert torch.allclose(values[0] - values[1], torch.tensor(2 * np.log(1000.0)), atol=1e-3)


@pytest.mark.parametrize("name", IDS)
def test_conditions_reach_samples_and_densities(name):
    """With a label the density depends on it; without one it is refused."""
    kind = next(iter(catalog.entries()[name].densities))
    space = data_of(kind).space.conditioned_on(label_space(("a", "b", "c")))
    if not catalog.class_of(name).conditional:
        with pytest.raises(Unfit, match="cannot be conditioned"):
            build(name, space)
        return
    system = build(name, space)
    with pytest.raises(Unfit, match="condition"):
        system.sample(2)
    x = system.sample(4, ["a", "b", "c", "a"], seed=0)
    differs = not torch.equal(space.encode(system.sample(4, "a", seed=0)), space.encode(system.sample(4, "b", seed=0)))
    if system.density is not Density.NONE:
        a, b = (system.log_prob(x, label) for label in "ab")
        differs = differs or not torch.allclose(a, b, atol=1e-6)
    assert differs


FAMILIES = ("igebm", "ddpm", "vae", "dcgan", "made", "realnvp")  # one of each, whose clock is in epochs too


@pytest.mark.parametrize(
    ("name", "budget"), [*((name, "6steps") for name in IDS), *((name, "0.6epochs") for name in FAMILIES)]
)
def test_stop_and_resume_equals_not_stopping(name, budget, tmp_path):
    """Bit for bit, and what was saved, or pickled, samples and scores as what was trained."""
    data = data_of(next(iter(catalog.entries()[name].densities)))

    def interrupt(event):
        if event["step"] == 3 and "loss" in event:
            os.kill(os.getpid(), signal.SIGINT)

    arguments = {"budget": budget, "batch_size": 6, "evaluations": 2, **small(name)}
    whole = fit(name, data, **arguments)
    with pytest.raises(Stopped):
        fit(name, data, out=tmp_path / "run", watch=interrupt, **arguments)
    resumed = resume(tmp_path / "run", data=data)
    loaded = fivefold.load(tmp_path / "run")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
        assert torch.equal(value, loaded.state_dict()[key]), key
    batch = data.test.spread(3)
    for other in (loaded, pickle.loads(pickle.dumps(whole))):
        assert torch.equal(whole.sample_encoded(3, seed=0), other.sample_encoded(3, seed=0))
        if whole.density is not Density.NONE:
            assert torch.equal(whole.score_encoded(batch).log_prob, other.score_encoded(batch).log_prob)


SHAPES = [(1, 1, 1), (3, 5, 7), (1, 6, 6), (4, 9, 9)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [name for name in IDS if "image" in catalog.entries()[name].densities])
def test_images_of_any_size(name, shape):
    """One pixel, odd, not square, four channels."""
    space = Space("image", shape, levels=4)
    system = catalog.build(name, space, **small(name))
    x = torch.randint(4, (6, *shape))
    trainable = [update.loss for update in _run(system.updates(Batch(x), 0.0))]
    assert all(loss.isfinite() for loss in trainable)
    assert system.sample_encoded(2, seed=0).shape == (2, *shape)


SIDES = [(channels, side) for side in (8, 16, 28, 32) for channels in (1, 3, 4)] + [(3, 64), (3, 128)]
NOT_CONVOLUTIONAL = {
    "bnaf", "boltzmann-machine", "dbn", "discrete-flow", "distilled-flow", "gsn", "iaf-flow", "made", "maf-flow",
    "masked-lm", "monge-ampere", "naf", "neural-ode", "nice", "ot-flow", "planar-flow", "potential-flow", "rbm",
    "sos-flow", "spline-flow", "sylvester-flow", "transformer", "umnn",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "side"), SIDES)
@pytest.mark.parametrize("name", [name for name in IDS if "image" in catalog.entries()[name].densities])
def test_images_of_the_usual_sizes_train(name, channels, side):
    """28 is not a power of two; convolutional systems go on to 64 and 128."""
    if side > 32 and name in NOT_CONVOLUTIONAL:
        pytest.skip("not convolutional")
    space = Space("image", (channels, side, side), levels=256)
    system = catalog.build(name, space, **small(name))
    for update in _run(system.updates(Batch(torch.randint(256, (2, *space.shape))), 0.5)):
        assert update.loss.isfinite()


def _run(generator):
    updates, reply = [], None
    while True:
        try:
            updates.append(generator.send(reply))
        except StopIteration:
            return updates
        updates[-1].loss.backward()
        reply = updates[-1].stats


@pytest.mark.parametrize("name", IDS)
def test_an_unfit_space_is_refused_with_those_that_fit(name):
    kinds = set(DATA) - set(catalog.entries()[name].densities) | ({"table"} if name in WHOLE else set())
    for kind in kinds:
        with pytest.raises(Unfit, match=f"Systems for {kind} data: "):
            catalog.build(name, data_of(kind).space)


@pytest.mark.parametrize(("name", "preset"), [(n, p) for n in IDS for p in catalog.entries()[n].presets])
def test_presets_name_real_options(name, preset):
    from fivefold.training.options import arguments

    chosen = arguments(catalog.class_of(name), preset, {})
    assert chosen["system"] is not None
    named = {option.partition(".")[0] for option in presets_of(catalog.class_of(name))[preset]}  # or a slot's part's
    assert set().union(*chosen.values()) >= named


@pytest.mark.parametrize("name", IDS)
def test_the_catalogue_says_where_it_comes_from(name):
    entry = catalog.entries()[name]
    assert entry.section[0].isdigit()
    assert entry.reference.rstrip("abc").endswith(tuple("0123456789"))
    assert len(entry.summary) > 20
    assert entry.sampling in ("autoregressive", "mcmc", "iterative", "direct")
    for option in options(entry.load()).values():
        assert option.help, f"{name} --{option.name} has no line of help"


# Of those that 400 do not suffice: a teacher's student has half of them.
STEPS = {
    "score-sde": 1000, "vaebm": 1000, "pixeliqn": 800, "progan": 1200, "biggan": 1200, "stylegan2-ada": 2000,
    "distilled-flow": 1500,
}  # fmt: skip


UNRANKED = {name for name in IDS if catalog.entries()[name].densities.get("image") in ("none", "unnormalised")}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in pairs("image") if name in UNRANKED or name not in LEARNT])
def test_learns_real_data(name):
    """Beats independent pixels on the digits' test split: in bits, or by half their Fréchet distance.

    The bits of those that `test_awake` trains on digits are compared there.
    """
    data = fivefold.load_data("digits")
    steps = STEPS.get(name, 400)
    system = fit(name, data, budget=f"{steps}steps", evaluations=4)
    test, train = data.test.batch(slice(None)), data.train.batch(slice(None))
    independent = IndependentDims(data.space, train.x)
    if system.density.comparable:
        assert system.score_encoded(test).log_prob.mean() > independent.log_prob(test.x).mean()
        return
    features = fit_features(data)
    ours, theirs = (features(x) for x in (system.sample_encoded(250, seed=0), independent.sample(250, seed=0)))
    assert frechet_distance(ours, features(test.x)) < 0.5 * frechet_distance(theirs, features(test.x))


OUTSIDE = '''
"""A system of thirty lines in a file of the user's own."""
import torch
from torch import nn
from fivefold import Density, System, option


class Independent(System):
    """Independent pixels (survey 5; nobody, 2026).

    Each dimension has its own histogram: a baseline that knows nothing of structure.
    """

    densities = {"image": Density.EXACT}
    conditional = False

    start: float = option(0.0, "of every logit")

    def build(self):
        self.logits = nn.Parameter(torch.full((*self.space.shape, self.space.levels), self.start))

    def loss(self, batch):
        return -self._log_prob(batch.x, batch.condition).mean()

    def _log_prob(self, x, condition):
        table = self.logits.log_softmax(-1).expand(len(x), *self.logits.shape)
        return table.gather(-1, x[..., None]).flatten(1).sum(1)

    def _sample(self, n, condition):
        return torch.distributions.Categorical(logits=self.logits).sample((n,))
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A package on the path with that one file."""
    (tmp_path / "mymodels").mkdir()
    (tmp_path / "mymodels" / "__init__.py").write_text("")
    (tmp_path / "mymodels" / "independent.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_a_system_outside_is_one_file(outside):
    """Found, trained by its name, saved; it loads only where it is trusted."""
    with catalog.trusting("mymodels.independent"):
        entry = catalog.find("mymodels.independent")
    assert (entry.title, entry.densities) == ("Independent pixels", {"image": "exact"})
    system = fit("mymodels.independent", data_of("image"), budget="20steps", lr=0.1, out=outside / "run")
    with pytest.raises(Untrusted, match="trust"):
        fivefold.load(outside / "run")
    loaded = fivefold.load(outside / "run", trust="mymodels.independent")
    assert torch.equal(loaded.logits, system.logits)


def _command(*words: str, **environment: str) -> str:
    done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_system_outside_is_listed_compared_and_contract_tested(outside):
    """By naming its package in an environment variable."""
    own = {"FIVEFOLD_SYSTEMS": "mymodels"}
    fivefold_ = [sys.executable, "-c", "from fivefold.cli import main; main()"]
    assert "Independent pixels" in _command(*fivefold_, "list", **own)
    out = outside / "comparison"
    words = ["compare", "mymodels.independent", "--data", "digits", "--budget", "2s", "--out", str(out)]
    assert "mymodels.independent" in _command(*fivefold_, *words)
    row = json.loads(next((out / "rows").glob("*.json")).read_text())
    assert row["status"] == "ok"
    assert row["density"]["bits_per_dim"] < 3
    checks = [sys.executable, "-m", "pytest", __file__, "-m", "not slow", "-k", "mymodels", "-p", "no:cacheprovider"]
    printed = _command(*checks, **own)
    assert int(re.search(r"(\d+) passed", printed)[1]) >= 8
