"""Flows with surjective and stochastic layers, and learnt dequantisation: exact densities, or bounds that tighten."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import fivefold
from fivefold.bijections.base import Chain
from fivefold.bijections.coupling import Coupling
from fivefold.bijections.dequantisation import VariationalDequantisation
from fivefold.bijections.laws import FlowLaw, still
from fivefold.bijections.stochastic import MarkovChain
from fivefold.bijections.surjections import Abs, Max, Piecewise, Slice
from fivefold.catalog import find
from fivefold.errors import OptionError
from fivefold.flow.cif import CIF
from fivefold.flow.stochastic_flow import SmallEnergy
from fivefold.space import Batch, Space
from fivefold.system import Density
from fivefold.tools.distributions import standard_normal_log_prob
from fivefold.tools.scaling import dequantise_log_det, midpoint
from tests.systems import follow
from tests.test_flows import MIXED, PLANE, SPACES, build, cell_probabilities, examples, grid_of

EXACT = {
    "rad": {},
    "rad of four pieces": {"pieces": 4},
    "flow-mixture": {"flows": 3},
    "surjective-flow": {},
    "surjective-flow, even": {"symmetric": True},
}
BOUNDS = {
    "anf": {},
    "anf, learnt": {"variant": "vflow", "extra": 2},
    "cif": {},
    "cif of more couplings": {"law_layers": 3, "index": 1},
    "stochastic-flow": {"step_size": 0.1, "kernel_steps": 2},
    "stochastic-flow, metropolis": {"step_size": 0.1, "kernel": "metropolis", "kernel_steps": 2},
}
DRAWS = 1500
PAIR = Space("image", (1, 1, 2), levels=3)


def made(name, space, spread=0.12, **options):
    known = name.replace(",", " ").split()[0]
    return build(known, space, spread, **{**EXACT.get(name, {}), **BOUNDS.get(name, {}), **options}).eval()


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", [*EXACT, *BOUNDS, "surjective-flow of slices"])
def test_fits_every_space(name, space):
    options = {"surjection": "slice"} if "slices" in name else {}
    system, x = made(name, space, 0.05, dequantisation="variational", **options), examples(space)
    exact = name not in BOUNDS and not any(space.dim_levels)
    assert system.density is (Density.EXACT if exact else Density.LOWER_BOUND)
    loss = system.train().loss(system.lifted(Batch(x)))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in system.parameters())
    data = space.decode(x)
    z = system.encode(data)
    assert z.shape == (len(x), system.noise_dims)
    assert len(system.reconstruct(data)) == len(x)
    assert len(system.interpolate(data[:1], data[1:2], steps=4)) == 4
    first, again = (system.sample_encoded(5, seed=1) for _ in range(2))
    assert first.shape == (5, *space.shape)
    assert torch.equal(first, again)
    score = system.score(data)
    assert score.log_prob.isfinite().all()
    assert bool(score.standard_error.any()) is not exact


@pytest.mark.parametrize("name", EXACT)
def test_density_is_exact(name):
    """It integrates to 1 in the user's units, and a chi-square test finds the samples in it."""
    system = made(name, PLANE, spread=0.12 if name == "flow-mixture" else 0.03)  # a wide law has spikes at the knots
    samples, edges, mass = grid_of(system)
    assert mass.sum() == pytest.approx(1, abs=1e-2)
    assert follow(np.histogram2d(*samples.T, bins=edges)[0], len(samples) * mass, 1e-3)


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_are_unbiased_below_the_density_tighten_and_samples_follow_it(name):
    """On a line: means of many single draws integrate to 1 and are what samples follow; their logarithms lie below."""
    space = SPACES["one column"]
    system = made(name, space, spread={"cif of more couplings": 0.05, "anf, learnt": 0.04}.get(name, 0.12))
    samples = system.sample_encoded(4000, seed=4)[:, 0].double()
    low, high = samples.min().item() - 1, samples.max().item() + 1
    step = (high - low) / 120
    x = torch.linspace(low + step / 2, high - step / 2, 120)[:, None]
    with torch.no_grad():
        torch.manual_seed(5)
        values = system._drawn_log_prob(x.repeat(DRAWS, 1), None).view(DRAWS, -1).double()
    truth = values.exp().mean(0)
    assert truth.sum().item() * step == pytest.approx(1, abs=0.02)
    middle = truth > 0.05 * truth.max()
    means = [(values.view(-1, k, 120).logsumexp(1) - math.log(k)).mean(0)[middle] for k in (1, 10, 150)]
    assert (means[0] < truth[middle].log()).all()
    assert (means[0] < means[1]).float().mean() > 0.95
    assert (truth[middle].log() - means[2]).mean() < 0.2 * (truth[middle].log() - means[0]).mean()
    with torch.no_grad():  # the loss is of one draw, and scores are of `score_samples`
        torch.manual_seed(6)
        loss = torch.stack([system.loss(Batch(x[middle])) for _ in range(100)]).mean()
    assert -loss.item() == pytest.approx(means[0].mean().item(), abs=0.1)
    score = system.score_encoded(Batch(x[middle]))
    assert (score.log_prob - truth[middle].log()).mean().abs() < (loss + truth[middle].log().mean()).abs()
    assert (score.standard_error > 0).all()
    cdf = np.concatenate([[0], np.cumsum(truth.numpy())])
    edges = np.linspace(low, high, 121)
    assert stats.kstest(samples.numpy(), lambda at: np.interp(at, edges, cdf / cdf[-1])).pvalue > 1e-3


@pytest.mark.parametrize("space", [SPACES["one column"], SPACES["odd"]], ids=["table", "image"])
def test_decoders_of_anf_can_learn_at_once_from_what_its_encoders_say(space):
    """Were both the identity at first, no decoder's gradient would depend on its input: a saddle point."""
    torch.manual_seed(0)
    system = find("anf").load()(space)
    couplings = [part for part in system.flow.modules() if isinstance(part, Coupling)]
    system.loss(Batch(examples(space))).backward()
    for encoder, decoder in zip(couplings[::2], couplings[1::2], strict=True):
        assert encoder.net.last.weight.abs().sum() > 0
        assert decoder.net.last.weight.abs().sum() == 0
        assert decoder.net.last.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["anf", "anf, learnt"])
def test_augmented_bounds_lie_below_the_integral_over_what_is_added(name):
    system = made(name, SPACES["one column"], spread=0.08, extra=1)
    rest = system.flow.parts[1:]
    e = torch.linspace(-8, 8, 801)[:, None]
    x = torch.linspace(-2, 2, 9)[:, None]
    with torch.no_grad():
        z, log_det = torch.cat([x.repeat_interleave(801, 0), e.repeat(9, 1)], 1), 0.0
        for part in rest:
            z, term = part(z)
            log_det = log_det + term
        truth = ((standard_normal_log_prob(z) + log_det).exp().view(9, -1).sum(1) * 0.02).log()
        values = system._drawn_log_prob(x.repeat(2000, 1), None).view(2000, -1)
    mean, error = values.exp().mean(0), values.exp().std(0) / 2000**0.5
    assert ((mean - truth.exp()).abs() < 4 * error + 1e-4).all()
    assert (values.mean(0) < truth).all()
    system.score_samples = 1000
    assert (system.score_encoded(Batch(x)).log_prob - truth).abs().max() < 0.1


# --- what each is -------------------------------------------------------------------------------


def test_rad_cuts_every_dimension_and_its_gate_moves_the_chances():
    system = made("rad", PLANE, 0.3, pieces=3)
    (fold,) = (part for part in system.flow.modules() if isinstance(part, Piecewise))
    assert fold.first_knot.shape == (2,)
    with torch.no_grad():
        z = torch.randn(400, 2)
        chances = fold._log_chances(z, None).exp()
    torch.testing.assert_close(chances.sum(0), torch.ones(400, 2))
    assert chances.var(1).min() > 1e-5
    with pytest.raises(ValueError, match="at least 2"):
        find("rad").load()(PLANE, pieces=1)


def test_symmetric_tables_have_symmetric_densities_and_signs_cost_the_logarithm_of_two():
    system, x = made("surjective-flow", PLANE, 0.3, symmetric=True), torch.randn(20, 2)
    signs = torch.tensor([[1.0, -1.0]])
    scores = [system.score_encoded(Batch(part)).log_prob for part in (x, -x, x * signs)]
    torch.testing.assert_close(scores[0], scores[1])
    torch.testing.assert_close(scores[0], scores[2])
    gated = made("surjective-flow", PLANE, 0.3)
    a, b = (gated.score_encoded(Batch(part)).log_prob for part in (x, -x))
    assert (a - b).abs().max() > 0.01
    with torch.no_grad():
        (lost,) = (part for part in system.flow.modules() if isinstance(part, Abs))
        assert lost(x)[1].mean().item() == pytest.approx(-2 * math.log(2))


def test_surjective_flows_of_images_have_less_noise_than_pixels():
    for surjection, kind, dims in (("max", Max, 4), ("slice", Slice, 16)):
        system = made("surjective-flow", SPACES["digits"], surjection=surjection)
        assert sum(isinstance(part, kind) for part in system.flow.modules()) == 2
        assert system.noise_dims == dims
        assert system.encode(SPACES["digits"].decode(examples(SPACES["digits"]))).shape == (6, dims)
    with pytest.raises(OptionError, match=r"max\|slice"):
        made("surjective-flow", SPACES["digits"], surjection="sum")


def test_augmented_flows_have_more_noise_than_data():
    for options, dims in (({}, 128), ({"extra": 3}, 256), ({"variant": "vflow", "extra": 2}, 192)):
        system = made("anf", SPACES["digits"], **options)
        assert system.noise_dims == dims
        code = system.encode(SPACES["digits"].decode(examples(SPACES["digits"])))
        assert code.shape == (6, dims)
    with pytest.raises(OptionError, match=r"anf\|vflow"):
        made("anf", PLANE, variant="survae")


def test_mixtures_are_the_weighted_sum_of_their_flows_and_codes_say_which():
    system, x = made("flow-mixture", PLANE, 0.4), torch.randn(200, 2)
    with torch.no_grad():
        z, joint = system._joint(x, None)
        weights = system._chances(x, None)[0]
        parts = []
        for flow in system.mixture.flows:
            noise, log_det = flow(x)
            parts.append(standard_normal_log_prob(noise).exp() * log_det.exp())
        truth = (weights[:, None] * torch.stack(parts)).sum(0).log()
        torch.testing.assert_close(system._point_log_prob(x, None), truth)
        assert (weights.diff().abs() > 1e-3).all()
        code = system._encode(x, None)
        back = system._decode(code, None)
        torch.testing.assert_close(back, x, atol=1e-4, rtol=0)
        which = (torch.special.ndtr(code[:, :1]) > weights.cumsum(0)[:-1]).sum(1)
        assert torch.equal(which, joint.argmax(0))
        assert len(which.unique()) > 1
        torch.testing.assert_close(code[:, 1:], z[which, torch.arange(200)])
    assert 1 <= system.monitor(Batch(x))["flows_in_use"] <= 3


def test_flows_of_a_mixture_start_apart():
    torch.manual_seed(0)
    system = find("flow-mixture").load()(PLANE, layers=2, hidden=8)
    with torch.no_grad():
        z, _ = system._joint(torch.randn(5, 2), None)
    assert torch.pdist(z.flatten(1)).min() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["langevin", "metropolis"])
def test_the_chain_of_a_stochastic_flow_moves_and_makes_the_bound_better(kernel):
    """From the start that users get, on a law of eight squares: one coupling, with and without the chain behind it."""
    data = fivefold.load_data("checkerboard")
    x = data.test.batch(slice(None))
    options = {"budget": "400steps", "evaluations": 1, "layers": 1}
    with_chain, without = (
        fivefold.fit("stochastic-flow", data, kernel=kernel, kernel_steps=steps, **options) for steps in (8, 0)
    )
    assert with_chain.score_encoded(x).log_prob.mean() > without.score_encoded(x).log_prob.mean() + 0.1
    seen = with_chain.monitor(x)
    assert seen["chain_moves"] > 0.3
    assert seen["chain_energy_fall"] > 0.1


def test_the_energy_of_a_stochastic_flow_learns_from_the_first_step():
    torch.manual_seed(0)
    system, x = find("stochastic-flow").load()(SPACES["odd"]), examples(SPACES["odd"])
    system.train().loss(Batch(x)).backward()
    (chain,) = (part for part in system.flow.modules() if isinstance(part, MarkovChain))
    assert isinstance(chain.energy, SmallEnergy)
    assert chain.energy.last.weight.grad.abs().sum() > 0
    assert chain.weights == pytest.approx([0.9375 - i / 8 for i in range(8)])
    seen = system.monitor(Batch(x))
    assert seen["chain_moves"] > 0.3
    assert find("stochastic-flow").load()(SPACES["odd"], kernel_steps=0).monitor(Batch(x))["chain_moves"] == 0


def indices_of(system, x):
    """How far the means of q(u | x) and p(u | z) vary over examples, for every law, and z over u."""
    with torch.no_grad(), still(system.flow):
        laws = [law.sample(x)[0].std(0).max().item() for law in system.flow.modules() if isinstance(law, FlowLaw)]
    with torch.no_grad():
        z = torch.stack([system.flow(x)[0] for _ in range(20)])
    return laws, z.std(0).mean().item()


def test_the_index_of_a_continuously_indexed_flow_comes_into_use():
    """From the start that users get: laws of u say the same of all x at first, and differ after a short training."""
    data = fivefold.load_data("moons")
    x = data.test.batch(slice(None)).x
    torch.manual_seed(0)
    at_first, _ = indices_of(find("cif").load()(data.space), x)
    assert max(at_first) < 1e-6
    laws, spread = indices_of(fivefold.fit("cif", data, budget="200steps", evaluations=1), x)
    assert min(laws) > 0.02
    assert spread > 0.05


class WithoutIndex(CIF):
    def _indexed(self, shape):
        return Chain()


@pytest.mark.slow
def test_a_continuous_index_makes_the_bound_better():
    """Of one coupling, which alone cannot part the moons; the mean of three seeds, which differ by 0.04 each."""
    data = fivefold.load_data("moons")
    x = data.test.batch(slice(None))

    def nats(cls, seed):
        system = fivefold.fit(cls, data, budget="600steps", seed=seed, evaluations=1, layers=1, score_samples=64)
        return system.score_encoded(x).log_prob.mean().item()

    gains = [nats("cif", seed) - nats(WithoutIndex, seed) for seed in (1, 2, 3)]
    assert np.mean(gains) > 0.02


# --- dequantisation ------------------------------------------------------------------------------


def every_pair():
    return torch.cartesian_prod(torch.arange(3), torch.arange(3)).view(-1, 1, 1, 2)


def bound(system, draws=4000):
    """Values of single draws, `(draws, 9)`."""
    with torch.no_grad():
        return system._drawn_log_prob(every_pair().repeat(draws, 1, 1, 1), None).view(draws, -1).double()


@pytest.mark.parametrize("name", ["realnvp", "glow", "spline-flow", "rad", "surjective-flow", "flowpp"])
def test_learnt_noise_makes_a_bound_of_the_cells_probabilities(name):
    system = build(name, PAIR, spread=0.15, dequantisation="variational").eval()
    truth = cell_probabilities(system, 3)
    torch.manual_seed(1)
    for parameter in system.cells.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    values = bound(system)
    assert system.cells(every_pair())[1].std() > 0.01
    mean, error = values.exp().mean(0), values.exp().std(0) / len(values) ** 0.5
    assert ((mean - truth).abs() < 4 * error + 1e-5).all()
    assert (values.mean(0) < truth.log()).all()


def test_learnt_noise_is_tighter_than_uniform_noise_after_training_and_still_below():
    """The flow is given, and the noise alone learns: nothing but the bound's gap can change."""
    system = build("realnvp", PAIR, spread=0.4, dequantisation="variational").eval()
    truth = cell_probabilities(system, 3).log()
    system.cells = None
    torch.manual_seed(1)
    uniform = (truth - bound(system).mean(0)).mean()
    system.cells = VariationalDequantisation(PAIR, 0, hidden=16, layers=2)
    optimizer = torch.optim.Adam(system.cells.parameters(), 2e-2)
    for _ in range(100):
        optimizer.zero_grad()
        system.loss(Batch(every_pair().repeat(10, 1, 1, 1))).backward()
        optimizer.step()
    values = bound(system)
    gaps = truth - values.mean(0)
    error = values.std(0) / len(values) ** 0.5
    assert (gaps > -3 * error).all()
    assert gaps.mean() < 0.5 * uniform
    assert uniform > 0.01


def test_learnt_noise_starts_uniform_and_stays_in_its_cell():
    for space in (SPACES["digits"], SPACES["odd"], MIXED):
        torch.manual_seed(0)
        system = find("realnvp").load()(space, layers=2, hidden=8, dequantisation="variational")
        x, space = system.lifted(Batch(examples(space))).x, system.space
        y, term = system.cells(x)
        torch.testing.assert_close(term, torch.full((6,), dequantise_log_det(space)), atol=1e-3, rtol=1e-5)
        for parameter in system.cells.parameters():
            torch.nn.init.normal_(parameter)
        y, term = system.cells(x)
        distance = (y - midpoint(x, space)).abs()
        levels = torch.tensor([math.inf if n is None else n for n in space.dim_levels]).view(space.shape)
        assert (distance <= 1 / levels + 1e-6).all()  # and a real dimension as it was
        assert distance[..., levels.isfinite()].max() > 0.2 * (1 / levels[levels.isfinite()]).max()
        assert term.std() > 0.01
    real = find("realnvp").load()(PLANE, dequantisation="variational")
    assert real.cells is None


@pytest.mark.parametrize(("name", "space"), [("realnvp", "odd"), ("flowpp", "odd"), ("flowpp", "digits")])
def test_learnt_noise_depends_on_the_example_and_its_condition(name, space):
    space = SPACES[space].conditioned_on(fivefold.space.label_space(("cat", "dog")))
    system, x = build(name, space, 0.3, dequantisation="variational"), examples(space)
    values = []
    for example, label in ((x, 0), (x.flip(0), 0), (x, 1)):
        torch.manual_seed(3)
        y, _ = system.cells(example, system.embedding(torch.full((6, 1), label)))
        values.append(y - midpoint(example, space))
    assert (values[0] - values[1]).abs().max() > 1e-3
    assert (values[0] - values[2]).abs().max() > 1e-3


# --- learning -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cif", "stochastic-flow"])
def test_learns_digits(name):
    data = fivefold.load_data("digits")
    system = fivefold.fit(name, data, budget="200steps")
    nats = system.score_encoded(data.test.batch(slice(None))).log_prob.mean()
    assert -nats / data.space.dims / np.log(2) < 2.41  # bits of independent levels
