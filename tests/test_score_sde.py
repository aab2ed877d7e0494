"""The score SDE against a known law: every equation and sampler, codes, densities; and what its networks add."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from fivefold.diffusion import _system
from fivefold.diffusion.score_sde import GRID, ScoreSDE
from fivefold.nets.ncsnpp import RESAMPLERS, RescaledBlock, ScoreUNet
from fivefold.nets.unet import Attention, UNet
from fivefold.space import Batch, Column, Space
from fivefold.system import BLOCK, seeded
from fivefold.tools.diffusion import rows
from fivefold.tools.scaling import dequantise

TABLE = Space("table", (2,), columns=(Column("x"), Column("y")))
IMAGE = Space("image", (2, 9, 6), levels=5)
MEAN, COVARIANCE = torch.zeros(2), torch.tensor([[1.0, 0.6], [0.6, 0.8]])
SDES = {"vp": {}, "sub-vp": {}, "ve": {"high": 20.0}}


class OptimalNoise(torch.nn.Module):
    """E[noise | x_t] of data from N(MEAN, COVARIANCE), less the part that the system adds itself, in its units."""

    def __init__(self, sde) -> None:
        super().__init__()
        self.sde, self.one, self.calls = sde, torch.nn.Parameter(torch.ones(())), 0

    def forward(self, scaled, t, condition=None):
        self.calls += 1
        a, s = self.sde.signal(t), self.sde.noise(t)
        deviation = (a**2 + s**2).sqrt()
        total = rows(a**2, COVARIANCE[None]) * COVARIANCE + rows(s**2, COVARIANCE[None]) * torch.eye(2)
        optimal = rows(s, scaled) * torch.linalg.solve(total, (rows(deviation, scaled) * scaled)[..., None])[..., 0]
        return rows(deviation / a, scaled) * (self.one * optimal - rows(s / deviation, scaled) * scaled)


def optimal(sde: str = "vp", **options) -> ScoreSDE:
    system = ScoreSDE(TABLE, sde=sde, **SDES[sde], **options)
    system.net = OptimalNoise(system.equation)
    return system.eval()


SAMPLERS = {"predictor-corrector": 100, "ancestral": 300, "ddim": 500, "euler-maruyama": 500, "probability-flow": 1}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("sde", SDES)
def test_samples_of_the_exact_score_follow_the_data_and_are_counted(sde, sampler):
    if (sde, sampler) == ("ve", "ddim"):
        pytest.skip("even steps in t are too coarse near the data for a deterministic first-order sampler")
    system = optimal(sde, sampler=sampler, sampling_steps=SAMPLERS[sampler])
    system.sample_encoded(BLOCK, seed=1)
    assert system.net.calls == system.sample_evaluations
    x = system.sample_encoded(4000, seed=0)
    error = 3 / math.sqrt(4000)
    torch.testing.assert_close(x.mean(0), MEAN, rtol=0, atol=error)
    torch.testing.assert_close(x.T.cov(), COVARIANCE, rtol=0, atol=error * math.sqrt(2) + 0.03)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("sde", SDES)
def test_density_is_the_datas(sde, exact):
    """Without the divergence, with its sign wrong or a constant missing, it would be off by nats."""
    torch.manual_seed(0)
    system = optimal(sde, tolerance=1e-4, exact_dims=8 if exact else 0, probes=30)
    law = MultivariateNormal(MEAN, COVARIANCE)
    x = law.sample((6,))
    score = system.score_encoded(Batch(x))
    slack = 0.01 + 4 * score.standard_error
    assert ((score.log_prob - law.log_prob(x)).abs() < slack).all()
    assert (score.standard_error > 0).all() != exact


@pytest.mark.parametrize("sde", SDES)
def test_codes_are_undone(sde):
    system, x = optimal(sde, tolerance=1e-5), MultivariateNormal(MEAN, COVARIANCE).sample((50,))
    z = system.encode(x)
    torch.testing.assert_close(system._decode(z, None), x, rtol=0, atol=1e-3)
    one = torch.ones(())
    assert z.std().item() == pytest.approx(system.equation.noise(one).item(), rel=0.25)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("weighting", ["simple", "likelihood"])
def test_times_are_trained_in_their_proportion(sde, weighting):
    """lambda = g^2 of the score's error (Song et al. 2021, Eq. 7) is g^2 / noise^2 of the noise's."""
    system = ScoreSDE(TABLE, sde=sde, weighting=weighting, first=0.01)
    share = system.share.diff(prepend=torch.zeros(1))
    t = 0.01 + 0.99 * (torch.arange(GRID).double() + 0.5) / GRID
    expected = {"simple": torch.ones(GRID), "likelihood": system.equation.variance(t) / system.equation.noise(t) ** 2}[
        weighting
    ]
    torch.testing.assert_close(share / share.sum(), expected.double() / expected.sum())
    seen = []
    system.noise = lambda x, at, condition: seen.append(at.t) or x
    system.loss(Batch(torch.randn(4000, 2)))
    drawn = ((seen[0].sort().values - 0.01) / 0.99 * GRID).long().clamp(max=GRID - 1)
    below = system.share[drawn] / system.share[-1]  # the share of all times up to each that was drawn
    torch.testing.assert_close(below, torch.linspace(0, 1, 4000).to(below), rtol=0, atol=0.01)


def test_loss_is_least_at_the_exact_score():
    system, x = optimal(), MultivariateNormal(MEAN, COVARIANCE).sample((20_000,))
    losses = []
    for factor in (0.9, 1.0, 1.1):
        system.net.one.data.fill_(factor)
        with seeded(0):
            losses.append(system.loss(Batch(x)).item())
    assert losses[1] < min(losses[0], losses[2])


def test_bounds_and_estimates_are_told_apart():
    assert ScoreSDE(IMAGE).density.value == "lower bound"
    assert ScoreSDE(TABLE).density.value == "estimate"
    assert ScoreSDE(Space("image", (1, 4, 4))).density.value == "estimate"


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 8, 8), (1, 5, 9), (2, 1, 17), (1, 28, 28)])
@pytest.mark.parametrize("plus", [False, True])
def test_networks_fit_images_of_every_size_and_use_every_parameter(shape, plus):
    torch.manual_seed(0)
    net = ScoreUNet(Space("image", shape, levels=4), channels=8, plus=plus)
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    y = net(torch.randn(2, *shape), torch.rand(2))
    assert y.shape == (2, *shape)
    y.square().sum().backward()
    for name, parameter in net.named_parameters():
        over_inputs = (0, *range(2, parameter.dim())) if parameter.dim() > 1 else ()
        assert parameter.grad.abs().sum(over_inputs).min() > 0 if over_inputs else parameter.grad.any(), name


@pytest.mark.parametrize(
    ("make", "attention", "sides"),
    [(ScoreUNet, 0, [3]), (ScoreUNet, 5, [5, 3, 5]), (UNet, 0, [3, 3, 3, 3]), (UNet, 5, [5, 3, 5, 5])],
)
def test_attention_works_in_the_middle_and_at_the_chosen_resolution(make, attention, sides):
    net, seen = make(IMAGE, channels=8, attention=attention), []
    for layer in (module for module in net.modules() if isinstance(module, Attention)):
        layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[2]))
    net(torch.randn(1, *IMAGE.shape), torch.rand(1))
    assert seen == sides


def test_training_takes_random_points_of_the_cells(monkeypatch):
    seen = []
    monkeypatch.setattr(_system, "dequantise", lambda x, space: seen.append(dequantise(x, space)) or seen[-1])
    ScoreSDE(IMAGE, channels=8).loss(Batch(torch.zeros(8, *IMAGE.shape, dtype=torch.long)))
    assert len(seen[0].unique()) > 0.9 * seen[0].numel()


def test_sums_of_two_paths_keep_their_variance():
    x, block = torch.randn(4, 8, 6, 6), RescaledBlock(8, 8, 4, False, 0.0, None)
    torch.testing.assert_close(block(x, torch.randn(4, 4)), x / math.sqrt(2))  # the second path starts at 0
    attending = RescaledBlock(8, 8, 4, True, 0.0, None)
    torch.testing.assert_close(attending(x, torch.randn(4, 4)), x / 2)


def test_ncsnpp_filters_where_the_resolution_changes():
    point = torch.zeros(1, 1, 6, 6)
    point[0, 0, 2, 2] = 1
    for plus, width in ((False, 2), (True, 4)):
        up = RESAMPLERS[plus]["up"](point)
        assert (up != 0).sum() == width**2
        assert up.sum().item() == pytest.approx(4)
        assert RESAMPLERS[plus]["down"](torch.ones(1, 1, 5, 8)).shape == (1, 1, 3, 4)
        assert RESAMPLERS[plus]["down"](torch.ones(1, 1, 12, 12))[0, 0, 3, 3].item() == pytest.approx(1)


def test_ncsnpp_brings_the_image_down_and_ddpmpp_does_not():
    """With all other paths of the encoder silent, the image still reaches the lowest resolution."""
    for plus in (False, True):
        net = ScoreUNet(IMAGE, channels=8, plus=plus)
        torch.nn.init.zeros_(net.first.weight)
        seen = []
        net.middle[0].register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(inputs[0]))
        net(torch.randn(1, *IMAGE.shape), torch.rand(1))
        net(torch.randn(1, *IMAGE.shape), torch.rand(1))
        assert torch.equal(*seen) != plus


def test_ncsnpp_takes_the_logarithm_of_the_noise_as_fourier_features():
    system = ScoreSDE(IMAGE, network="ncsn++", sde="ve", channels=64)
    frequencies = system.net.time.frequencies
    assert "net.time.frequencies" in system.state_dict()  # random, so a checkpoint needs them
    assert frequencies.std().item() == pytest.approx(2 * math.pi * 16, rel=0.25)
    seen = []
    system.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    t = torch.tensor([0.1, 0.9])
    system.noise(torch.randn(2, *IMAGE.shape), system.equation.at(t), None)
    torch.testing.assert_close(seen[0], system.equation.noise(t).log())
    assert "net.time.frequencies" not in ScoreSDE(IMAGE).state_dict()
