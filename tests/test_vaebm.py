"""VAEBM: noise to pixels against the VAE's own law, chains against the tilted law, two stages, replay, norms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fivefold.energy.vaebm import VAEBM
from fivefold.errors import OptionError, Unfit
from fivefold.options import slot
from fivefold.space import Batch, Space, label_space
from fivefold.system import seeded
from fivefold.tools.scaling import uncentre
from tests.systems import follow

TINY = Space("image", (2, 1, 2), levels=3)  # 81 images
REAL = Space("image", (2, 1, 2))
DIGITS = Space("image", (1, 8, 8), levels=17)
VAE = slot("vdvae", width=16, bottleneck=0.25, latent=2, blocks=1, mixtures=1, warmup=0.5, score_samples=64)
SMALL = {"vae": VAE, "width": 8, "blocks": 1}


def build(space: Space, moved: float = 0.15, reset_rate: float = 0.5, buffer_size: int = 32, **options) -> VAEBM:
    torch.manual_seed(0)
    chains = slot("contrastive-divergence", chain_steps=5, reset_rate=reset_rate, buffer_size=buffer_size)
    system = VAEBM(space, **SMALL | {"objective": chains} | options).eval()
    with torch.no_grad():
        for parameter in system.vae.parameters():
            parameter.add_(moved * torch.randn_like(parameter))
    return system


class Linear(nn.Module):
    """E(x) = slope sum(x)."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x, condition=None):
        return self.slope * x.flatten(1).sum(1)


class Bounded(nn.Module):
    """E(x) = 1.5 tanh(sum(x) / scale)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x, condition=None):
        return 1.5 * torch.tanh(x.flatten(1).sum(1) / self.scale)


@torch.no_grad()
def test_normal_noise_gives_the_vaes_own_law():
    """Levels with the mass that the VAE's likelihood gives them: a chi-square test at 1 in 10,000."""
    system, n = build(TINY), 20_000
    codes = torch.randn(1, system.vae.noise_dims - 4).expand(n, -1)  # one law p(x|z), drawn from n times
    with seeded(1):
        x = uncentre(system.examples(torch.cat([codes, torch.randn(n, 4)], 1), None), TINY)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, *TINY.shape)
    maps = system.vae.generate(codes[:1], None).expand(81, -1, -1, -1)
    expected = system.vae.head.log_prob(maps, every).exp() * n
    assert expected.sum().item() == pytest.approx(n, rel=1e-4)
    counts = torch.bincount(x.flatten(1) @ torch.tensor([27, 9, 3, 1]), minlength=81)
    assert follow(counts.numpy(), expected.numpy())


def test_chains_follow_the_vae_tilted_by_the_energy():
    """Against the VAE's draws weighted by exp(-E); the wrong sign, or no pull to normal noise, would be far off."""
    system, n = build(REAL, moved=0.05, step_size=0.1), 3000
    plain = system.examples(torch.randn(20_000, system.vae.noise_dims), None).detach()
    system.energy = Bounded(plain.sum((1, 2, 3)).std().item())
    weight = (-system.energy(plain)).softmax(0)
    with seeded(0):
        noise = system.run(torch.randn(n, system.vae.noise_dims), None, 100)
    x = system.examples(noise, None).detach()
    values = torch.stack([system.energy(x), x.square().mean((1, 2, 3)).sqrt()]).detach()
    before = torch.stack([system.energy(plain), plain.square().mean((1, 2, 3)).sqrt()]).detach()
    error = 5 * values.std(1) / math.sqrt(n) + 0.04 * values.std(1)
    assert ((values.mean(1) - before @ weight).abs() < error).all()
    assert before[0].mean() - before[0] @ weight > 5 * error[0]


def test_chains_move_codes_and_pixels():
    system = build(DIGITS)
    noise = torch.randn(3, system.vae.noise_dims, requires_grad=True)
    system.energy(system.examples(noise, None)).sum().backward()
    assert (noise.grad[:, :-64] != 0).any()
    assert (noise.grad[:, -64:] != 0).any()


def test_density_is_the_vaes_less_the_energy():
    system, x = build(DIGITS), torch.randint(17, (4, 1, 8, 8))
    system.energy = Linear(0.0)
    plain = system.score_encoded(Batch(x)).log_prob
    system.energy = Linear(2.0)
    tilted = system.score_encoded(Batch(x)).log_prob
    energy = 2 * (x.double() / 8 - 1).sum((1, 2, 3))  # ln Z is common to all: see the contract's sum over images
    torch.testing.assert_close(tilted - tilted[0], plain - plain[0] - energy + energy[0], rtol=1e-4, atol=1e-3)


def test_without_steps_samples_are_the_vaes_and_steps_lower_the_energy():
    system = build(DIGITS, step_size=0.01)
    system.energy = Linear(1.0)
    x = {
        n: system.sample_encoded(64, seed=0).double().mean() for n in (0, 20) if not setattr(system, "sample_steps", n)
    }
    assert x[20] < x[0]


def train(system, x, progress, steps=1):
    system.lr = 1e-2
    optimizers = system.optimizers()
    for _ in range(steps):
        for update in system.updates(Batch(x), progress):
            optimizers[update.player].zero_grad()
            update.loss.backward(inputs=list(update.player.parameters()))
            optimizers[update.player].step()
    return update


@pytest.mark.parametrize(("progress", "player"), [(0.1, "vae"), (0.9, "energy")])
def test_first_the_vae_then_the_energy_alone(progress, player):
    system = build(DIGITS)
    before = {name: value.clone() for name, value in system.named_parameters()}
    train(system, torch.randint(17, (8, 1, 8, 8)), progress)
    moved = {name.split(".")[0] for name, value in system.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {player}


def test_the_energy_falls_on_data_and_rises_on_what_is_generated():
    system, x = build(DIGITS), torch.randint(6, (16, 1, 8, 8))
    train(system, x, 0.9, steps=20)
    monitor = system.monitor(Batch(x))
    assert monitor["energy_data"] < monitor["energy_base"]


def test_a_chain_that_ran_away_starts_afresh():
    system = build(DIGITS, reset_rate=0.0)
    system.learner.buffer.ages.fill_(1)
    system.learner.buffer.chains[3, 5] = 30.0
    noise, *_ = system.learner._starts(system, torch.arange(8), torch.zeros(8, 1), None)
    assert (noise == system.learner.buffer.chains[:8]).all(1).tolist() == [slot != 3 for slot in range(8)]
    assert noise.abs().max() < 8


@pytest.mark.parametrize(("reset_rate", "kept"), [(1.0, False), (0.0, True)])
def test_chains_are_replayed(reset_rate, kept):
    system = build(DIGITS, reset_rate=reset_rate)
    system.learner.buffer.chains.fill_(7.0)
    system.learner.buffer.ages.fill_(1)
    noise, *_ = system.learner._starts(system, torch.arange(8), torch.zeros(8, 1), None)
    assert (noise == 7).all().item() == kept
    train(system, torch.randint(17, (8, 1, 8, 8)), 0.9)
    assert (system.learner.buffer.chains != 7).any(1).sum() == 8  # and where they end is written back


def test_a_chain_keeps_its_condition():
    """Replayed with it, and written back beside it."""
    space = DIGITS.conditioned_on(label_space(("a", "b")))
    system = build(space, reset_rate=0.0, buffer_size=8)
    first, second = torch.zeros(8, 1), torch.ones(8, 1)
    for given in (first, second):
        list(system.updates(Batch(torch.randint(17, (8, 1, 8, 8)), given), 0.9))
        assert torch.equal(system.learner.buffer.conditions, first)
    noise, condition, _ = system.learner._starts(system, torch.arange(8), torch.zeros(8, 1), second)
    assert torch.equal(noise, system.learner.buffer.chains)
    assert torch.equal(condition, first)


def test_spectral_norms_are_those_of_the_layers_and_are_held():
    system, x = build(DIGITS), torch.randint(17, (8, 1, 8, 8))
    layers = [m for m in system.energy.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    largest = [torch.linalg.svdvals(layer.weight.flatten(1))[0] for layer in layers]
    torch.testing.assert_close(system.spectral_norms(), torch.stack(largest).sum())
    norms = {}
    for weight in (0.0, 1.0):
        system = build(DIGITS, spectral=weight)
        train(system, x, 0.9, steps=5)
        norms[weight] = system.spectral_norms().item()
    assert norms[1.0] < norms[0.0]


def test_what_it_tilts_is_a_slot():
    with pytest.raises(Unfit, match="These fit: vdvae"):
        VAEBM(DIGITS, vae="vae")
    with pytest.raises(OptionError, match="mixtures"):
        VAEBM(DIGITS, vae=slot("vdvae", width=16, mixtures=2))
