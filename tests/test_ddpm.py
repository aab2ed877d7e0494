"""Diffusion against closed forms: schedules, posteriors, the bound term by term, samplers, inversion."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import fivefold
from fivefold.diffusion.ddpm import DDPM
from fivefold.evaluation.features import fit_features
from fivefold.nets.unet import Attention, UNet
from fivefold.space import Batch, Column, Space, label_space
from fivefold.system import seeded
from fivefold.tools.baselines import IndependentDims
from fivefold.tools.diffusion import SCHEDULES, VARIANCES, GaussianDiffusion, alpha_bars, discretised_gaussian_log_prob
from fivefold.tools.metrics import frechet_distance
from fivefold.tools.sde import SDE, in_steps, step

TABLE = Space("table", (2,), columns=(Column("x"), Column("y")))
MEAN, COVARIANCE = torch.tensor([0.5, -1.0]), torch.tensor([[1.0, 0.6], [0.6, 0.8]])
DATA = MultivariateNormal(MEAN, COVARIANCE)


class OptimalNoise(torch.nn.Module):
    """E[noise | x_t] where the data are N(MEAN, COVARIANCE), less the part that the system adds itself."""

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        self.sde, self.scale = sde, torch.nn.Parameter(torch.ones(()))

    def forward(self, x, t, condition=None):
        a, s = self.sde.signal(t)[:, None, None], self.sde.noise(t)[:, None]
        total = a**2 * COVARIANCE + s[:, :, None] ** 2 * torch.eye(2)
        optimal = s * torch.linalg.solve(total, (x - a[:, 0] * MEAN)[:, :, None])[:, :, 0]
        return self.scale * optimal - s * x


def optimal(**options) -> DDPM:
    system = DDPM(TABLE, **options)
    system.net = OptimalNoise(system.equation)
    return system.eval()


@pytest.fixture(params=SCHEDULES)
def bars(request):
    return alpha_bars(SCHEDULES[request.param], 50, 0.05)


def test_schedules_start_at_the_first_noise_and_end_in_noise(bars):
    assert bars[0] == 1
    assert (1 - bars[1]).sqrt().item() == pytest.approx(0.05, rel=0.01)
    assert (bars.diff() < 0).all()
    assert bars[-1] < 1e-4


def test_linear_schedule_is_the_papers():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    ours = alpha_bars(SCHEDULES["linear"], 1000, 0.01)[1:]
    torch.testing.assert_close(ours, (1 - betas).cumprod(0), rtol=0.15, atol=2e-3)


def test_single_steps_compose_to_the_marginal(bars):
    mean, variance, sde = 1.0, 0.0, in_steps(bars)
    for t in range(1, 51):
        beta, at = 1 - (bars[t] / bars[t - 1]).item(), torch.tensor(t / 50).double()
        mean, variance = mean * math.sqrt(1 - beta), variance * (1 - beta) + beta
        assert mean == pytest.approx(sde.signal(at).item(), rel=1e-5)
        assert variance == pytest.approx(sde.noise(at).item() ** 2, rel=1e-5)


@pytest.mark.parametrize(("t", "s"), [(2, 1), (30, 29), (40, 10), (50, 1)])
def test_posterior_is_bayes_rule(bars, t, s):
    """What an ancestral step draws from, by quadrature."""
    x_0, x_t, grid = 0.7, -0.4, torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    between = bars[t] / bars[s]
    log_joint = Normal(bars[s].sqrt() * x_0, (1 - bars[s]).sqrt()).log_prob(grid)
    log_joint = log_joint + Normal(between.sqrt() * grid, (1 - between).sqrt()).log_prob(torch.tensor(x_t))
    weight = log_joint.softmax(0)
    mean, deviation = (weight * grid).sum(), (weight * grid**2).sum().sub((weight * grid).sum() ** 2).sqrt()
    many = torch.full((400_000, 1), x_t, dtype=torch.float64)
    later, earlier = (in_steps(bars).at(torch.tensor([k / 50]).double()) for k in (t, s))
    with seeded(0):
        draws = step(many, torch.full_like(many, x_0), later, earlier, eta=1.0)
    assert draws.mean().item() == pytest.approx(mean.item(), abs=3 * deviation.item() / math.sqrt(len(many)) + 1e-6)
    assert draws.std().item() == pytest.approx(deviation.item(), rel=0.01)


@pytest.mark.parametrize("variance", VARIANCES)
def test_kl_terms_are_those_between_the_gaussians(bars, variance):
    diffusion, x, guess = GaussianDiffusion(bars, variance), torch.randn(4, 3), torch.randn(4, 3)
    for t in (2, 17, 50):
        beta = (1 - bars[t] / bars[t - 1]).item()
        deviation = math.sqrt(beta * (1 - bars[t - 1].item()) / (1 - bars[t].item()))
        wide = {"posterior": deviation, "forward": math.sqrt(beta)}[variance]
        later, earlier = (in_steps(bars).at(torch.tensor([k / 50]).double()) for k in (t, t - 1))
        means = []
        for x_0 in (x, guess):
            with seeded(0):  # the same noise in both, so the difference of the means is right
                means.append(step(torch.zeros(4, 3).double(), x_0.double(), later, earlier, eta=1.0))
        expected = kl_divergence(Normal(means[0], deviation), Normal(means[1], wide)).sum(1)
        torch.testing.assert_close(diffusion.step_kl(x, guess, torch.full((4,), t)), expected, rtol=1e-4, atol=1e-6)
    last = Normal(bars[-1].sqrt() * x.double(), (1 - bars[-1]).sqrt())
    expected = kl_divergence(last, Normal(torch.zeros_like(x), 1.0)).sum(1)
    torch.testing.assert_close(diffusion.prior_kl(x), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("levels", [1, 2, 17, 256])
@pytest.mark.parametrize("scale", [0.003, 0.1, 2.0])
def test_decoder_is_a_distribution_over_levels(levels, scale):
    grid = torch.linspace(-1, 1, levels) if levels > 1 else torch.tensor([-1.0])
    half = 1 / max(levels - 1, 1)
    for mean in (-1.5, -0.2, 0.9):
        log_mass = discretised_gaussian_log_prob(grid, torch.tensor(mean), scale, half)
        assert log_mass.isfinite().all()
        if levels > 1:
            assert log_mass.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_bound_is_below_the_exact_density_and_near_it_for_the_optimal_denoiser():
    system, x = optimal(score_steps=0), DATA.sample((400,))
    score = system.score_encoded(Batch(x))
    gap = DATA.log_prob(x).double() - score.log_prob
    error = gap.std().item() / math.sqrt(len(gap))
    assert -3 * error < gap.mean().item() < 0.1
    # each example's stated error covers its spread over repeats, and not much more
    repeats = torch.stack([system.score_encoded(Batch(x[:8]), seed=s).log_prob for s in range(30)])
    assert 0.5 < (score.standard_error[:8].mean() / repeats.std(0).mean()).item() < 2


@pytest.mark.parametrize("space", [TABLE, Space("image", (1, 2, 2), levels=5)])
def test_sampled_terms_estimate_the_full_sum(space):
    torch.manual_seed(0)
    full = DDPM(space, timesteps=40, channels=8, hidden=16, score_steps=0).eval()
    few = DDPM(space, timesteps=40, channels=8, hidden=16, score_steps=10).eval()
    few.load_state_dict(full.state_dict())
    x = torch.randn(1, 2) if space is TABLE else torch.randint(5, (1, 1, 2, 2))
    exact, sampled = (m.score_encoded(Batch(x.expand(4000, *space.shape))) for m in (full, few))
    difference = exact.log_prob.mean() - sampled.log_prob.mean()
    error = torch.stack([s.log_prob.std() for s in (exact, sampled)]).norm() / math.sqrt(4000)
    assert difference.abs() < 3 * error
    stated = sampled.standard_error.square().mean().sqrt()
    assert (stated / sampled.log_prob.std()).item() == pytest.approx(1, abs=0.15)
    terms = full.elbo_terms(x)
    assert terms.shape == (1, 41)
    assert (terms[:, 1:] >= 0).all()


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "ancestral", "sampling_steps": 1000}, {"sampler": "ddim"}, {"eta": 1.0},
        {"sampler": "euler-maruyama"}, {"sampler": "predictor-corrector", "sampling_steps": 100},
        {"sampler": "probability-flow"}, {"sampler": "adaptive-sde", "tolerance": 0.05},
    ],
)  # fmt: skip
def test_samples_of_the_optimal_denoiser_follow_the_data(options):
    """Every sampler on the chain of T steps."""
    x = optimal(**({"sampling_steps": 400, "tolerance": 1e-4} | options)).sample_encoded(4000, seed=0)
    error = 3 / math.sqrt(4000)
    torch.testing.assert_close(x.mean(0), MEAN, rtol=0, atol=error)
    torch.testing.assert_close(x.T.cov(), COVARIANCE, rtol=0, atol=error * math.sqrt(2) + 0.01)


def test_loss_is_least_at_the_optimal_noise():
    system, x = optimal(), DATA.sample((20_000,))
    losses = []
    for factor in (0.9, 1.0, 1.1):
        system.net.scale.data.fill_(factor)
        with seeded(0):
            losses.append(system.loss(Batch(x)).item())
    assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize("steps", [0, 10])
def test_the_prior_is_a_term_of_the_bound(steps, monkeypatch):
    """The last one, all but 0 on standardised data."""
    system, x = optimal(timesteps=50, score_steps=steps), DATA.sample((9,))
    before = system.score_encoded(Batch(x)).log_prob
    true = GaussianDiffusion.prior_kl
    monkeypatch.setattr(GaussianDiffusion, "prior_kl", lambda self, y: true(self, y) + 7)
    torch.testing.assert_close(system.score_encoded(Batch(x)).log_prob, before - 7)


def test_codes_are_undone():
    system, x = optimal(tolerance=1e-5), DATA.sample((50,))
    z = system.encode(x)
    torch.testing.assert_close(system._decode(z, None), x, rtol=0, atol=2e-3)
    assert z.std().item() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 8, 8), (1, 5, 9), (2, 1, 17), (1, 28, 28)])
def test_unet_fits_images_of_every_size(shape):
    net = UNet(Space("image", shape, levels=4, condition=label_space(("a", "b"))), channels=8, blocks=1)
    x = torch.randn(2, *shape)
    assert net(x, torch.rand(2), torch.tensor([[0.0], [1.0]])).shape == x.shape
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    net(x, torch.rand(2), torch.tensor([[0.0], [1.0]])).square().sum().backward()
    for name, parameter in net.named_parameters():  # every input of every layer counts
        over = (0, *range(2, parameter.dim())) if parameter.dim() > 1 else ()
        assert parameter.grad.abs().sum(over).min() > 0 if over else parameter.grad.any(), name


def test_attention_is_over_all_positions_in_heads():
    torch.manual_seed(0)
    layer, x = Attention(64), torch.randn(2, 64, 3, 4)
    assert layer.heads == 2
    torch.testing.assert_close(layer(x), x)  # at first
    torch.nn.init.normal_(layer.out.weight)
    q, k, v = layer.qkv(layer.norm(x)).view(2, 3, 2, 32, 12).unbind(1)
    weights = (torch.einsum("bhdi,bhdj->bhij", q, k) / math.sqrt(32)).softmax(3)
    mixed = torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(2, 64, 3, 4)
    torch.testing.assert_close(layer(x), x + layer.out(mixed), rtol=1e-4, atol=1e-4)


def test_predicted_levels_are_kept_within_their_range():
    torch.manual_seed(0)
    for levels, bound in ((5, 1.0), (None, 100.0)):
        system = DDPM(Space("image", (1, 4, 4), levels=levels), channels=8)
        x = 10 * torch.randn(50, 1, 4, 4)
        largest = system.denoiser(None).clean(x, system.equation.at(torch.tensor([1e-3]))).abs().max().item()
        assert largest <= bound if levels else largest > 1


@pytest.mark.parametrize("weighting", ["simple", "likelihood"])
def test_weightings_draw_times_in_their_proportion(weighting):
    system = DDPM(TABLE, timesteps=20, weighting=weighting)
    shares = system.share.diff(prepend=torch.zeros(1)) / system.share[-1]
    expected = {"simple": torch.ones(20), "likelihood": system.diffusion.noise_weight}[weighting]
    torch.testing.assert_close(shares.double(), expected.double() / expected.sum())
    seen = []
    system.noise = lambda x, at, condition: seen.append(at.t) or x
    system.loss(Batch(torch.randn(4000, 2)))
    drawn = (seen[0] * 20).round().long()
    torch.testing.assert_close(drawn.bincount(minlength=21)[1:] / 4000, shares.float(), rtol=0, atol=1e-3)
    noise = (system.equation.noise(system.trained) / system.equation.signal(system.trained))[1:]
    torch.testing.assert_close(
        system.diffusion.noise_weight[1:], system.diffusion.kl_weight[2:] * noise**2, rtol=1e-5, atol=0
    )


@pytest.mark.slow
def test_learns_digits_better_than_independent_pixels():
    data = fivefold.load_data("digits")
    system = fivefold.fit("ddpm", data, budget="400steps", evaluations=1)
    held_out = data.test.spread(100)
    bits = -system.score_encoded(held_out).log_prob.mean().item() / 64 / math.log(2)
    assert bits < 2.4  # independent pixels: 2.41
    baseline, features = IndependentDims(data.space, data.train.batch(slice(None)).x), fit_features(data)
    distances = [
        frechet_distance(features(samples), features(data.test.batch(slice(None)).x))
        for samples in (system.sample_encoded(250, seed=0), baseline.sample(250, seed=0))
    ]
    assert distances[0] < distances[1] / 2
