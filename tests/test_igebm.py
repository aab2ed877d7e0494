"""Langevin dynamics against known laws; IGEBM's energy, replay buffer and spectral norm."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from fivefold.energy.igebm import IGEBM
from fivefold.nets.norm import frozen, spectral_norm
from fivefold.options import slot
from fivefold.space import Batch, Column, Space, label_space
from fivefold.system import Density
from fivefold.tools.mcmc import KERNELS, Move, energy_gradient, langevin

DIGITS = Space("image", (1, 8, 8), 17)
PLANE = Space("table", (2,), columns=(Column("x"), Column("y")))
CD = {"chain_steps": 2, "buffer_size": 32}
SMALL = {"width": 4, "sample_steps": 3, "objective": slot("contrastive-divergence", **CD)}


def small(**objective):
    return SMALL | {"objective": slot("contrastive-divergence", **CD | objective)}


def train(system, data, steps, batch_size=8):
    (optimizer,) = system.optimizers().values()
    system.train()
    for step in range(steps):
        rows = torch.arange(step * batch_size, (step + 1) * batch_size) % len(data.x)
        batch = Batch(data.x[rows], None if data.condition is None else data.condition[rows])
        for update in system.updates(batch, step / steps):
            optimizer.zero_grad()
            update.loss.backward()
            optimizer.step()


# --- the sampler ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "step_size"), [(1.0, 0.1), (0.5, 0.2), (2.0, 1.0)])
def test_langevin_has_the_stationary_law_of_a_gaussian(scale, step_size):
    """x <- (1 - a / 2s^2) x + e is an AR(1) process: its variance is s^2 / (1 - a / 4s^2), near s^2 for small a."""
    torch.manual_seed(0)
    start = torch.full((20_000, 1), 3.0)
    x = langevin(lambda y: (y**2).sum(1) / (2 * scale**2), start, 150, Move(step_size)).state
    variance = scale**2 / (1 - step_size / (4 * scale**2))
    assert abs(x.mean().item()) < 4 * math.sqrt(variance / len(x))
    assert x.var().item() == pytest.approx(variance, abs=4 * variance * math.sqrt(2 / len(x)))
    assert (start == 3).all()


def test_langevin_at_a_temperature_clamped_and_bounded():
    torch.manual_seed(0)

    def moved(x, steps, *move, **others):
        return langevin(lambda y: (y**2).sum(1) / 2, x, steps, Move(*move, **others)).state

    warm = moved(torch.randn(20_000, 1), 150, 0.1, noise=math.sqrt(0.1 * 0.25))
    assert warm.var().item() == pytest.approx(0.25 / (1 - 0.1 / 4), rel=0.05)
    start = torch.full((4, 1), 5.0)
    torch.testing.assert_close(moved(start, 1, 2.0, noise=0.0, clamp=0.5), start - 0.5)
    torch.testing.assert_close(moved(start, 1, 0.1, noise=0.0, bounds=(-1.0, 1.0)), torch.ones(4, 1))


@pytest.mark.parametrize(
    ("name", "step_size"), [("metropolis-langevin", 0.5), ("metropolis-langevin", 2.0), ("hamiltonian", 0.1)]
)
def test_accepted_steps_have_the_law_of_the_energy_whatever_their_size(name, step_size):
    """Within bounds, at a temperature, with a clamped drift: the variance is that of exp(-E / T) between the bounds."""
    torch.manual_seed(0)
    move = Move(step_size, math.sqrt(0.5 * step_size), clamp=1.0, bounds=(-1.0, 2.0))
    x = KERNELS[name](lambda y: (y**2).sum(1) / 2, torch.zeros(20_000, 1), 150, move).state.squeeze(1)
    grid = torch.linspace(-1, 2, 10_001).double()
    weight = (-(grid**2) / 2 / 0.5).softmax(0)
    mean = (weight * grid).sum()
    variance = (weight * (grid - mean) ** 2).sum()
    assert x.mean().item() == pytest.approx(mean.item(), abs=4 * math.sqrt(variance / len(x)))
    assert x.var().item() == pytest.approx(variance.item(), rel=0.05)
    assert x.min() >= -1
    assert x.max() <= 2


@pytest.mark.parametrize("chain_start", ["noise", "data"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_chains_start_where_they_are_told_and_move_as_they_are_told(kernel, chain_start):
    torch.manual_seed(0)
    system, starts = IGEBM(DIGITS, **small(chain_start=chain_start, kernel=kernel)), []
    run = system.run
    system.run = lambda x, *rest, **more: starts.append(x) or run(x, *rest, **more)
    train(system, Batch(torch.full((8, 1, 8, 8), 8)), 2)
    near = [(start.abs() <= 1 / 16 + 0.01).all().item() for start in starts]  # level 8 of 17 is at 0
    assert near == [chain_start == "data"] * 2
    assert system.sample_encoded(4, seed=0).shape == (4, 1, 8, 8)


# --- the energy -------------------------------------------------------------------------------------


def test_differences_of_log_prob_are_those_of_the_energy_its_chains_follow():
    """The score of -E is the drift that goes with the noise: step_size / 2 df/dx = noise^2 / 2 dE/dx (Eq. 4)."""
    system = IGEBM(PLANE, **SMALL).eval()
    assert system.density is Density.UNNORMALISED
    assert not system.density.comparable
    x = torch.randn(6, 2)
    log_prob = system.score_encoded(Batch(x)).log_prob
    f = system.energy(x).double().detach()
    torch.testing.assert_close(log_prob[:1] - log_prob, (f - f[:1]) / system.temperature, atol=1e-3, rtol=1e-4)
    score = -energy_gradient(lambda y: -system._log_prob(y, None))(x)
    moved = langevin(system.energy, x, 1, Move(system.move().step_size, noise=0.0)).state
    torch.testing.assert_close(moved - x, 0.5 * system.move().noise ** 2 * score, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("depth", "sides", "widths"), [(1, [8, 4, 2], [2, 4, 8]), (2, [8, 4, 4, 2, 2, 1], [2, 2, 4, 4, 8, 8])]
)
def test_sides_are_halved_after_the_first_block_of_each_width(depth, sides, widths):
    system, seen = IGEBM(DIGITS, **SMALL | {"width": 2, "depth": depth}), []
    for block in system.energy.blocks:
        block.register_forward_hook(lambda _, given, made: seen.append((given[0].shape[-1], made.shape[1])))
    system.energy(torch.randn(1, 1, 8, 8))
    assert seen == list(zip(sides, widths, strict=True))


@pytest.mark.slow
def test_learns_a_gaussian_whose_chains_follow_its_own_density():
    """Trained on N((1, -0.5), 0.5^2): the normalised exp(-E), and long chains, have its mean and scale."""
    torch.manual_seed(0)
    mean = torch.tensor([1.0, -0.5])
    system = IGEBM(PLANE, sample_steps=200)
    train(system, Batch(mean + 0.5 * torch.randn(4096, 2)), 600, batch_size=128)
    axis = torch.linspace(-4, 4, 161)
    grid = torch.cartesian_prod(axis, axis)
    weight = system.score_encoded(Batch(grid)).log_prob.softmax(0).float()[:, None]
    centre = (weight * grid).sum(0)
    scale = (weight * (grid - centre) ** 2).sum(0).sqrt()
    chains = system.sample_encoded(2000, seed=0)
    for location, spread in ((centre, scale), (chains.mean(0), chains.std(0))):
        assert (location - mean).abs().max() < 0.25, location
        assert ((spread / 0.5).log().abs() < 0.4).all(), spread


@pytest.mark.parametrize("space", [DIGITS, Space("image", (1, 8, 8), None)], ids=["levels", "reals"])
def test_the_loss_is_the_contrast_and_holds_both_values_near_zero(space):
    """Of data with noise in the cell where they are levels, and of the chains' ends."""
    torch.manual_seed(0)
    system, parts = IGEBM(space, **SMALL | {"regularisation": 0.3}).eval(), []
    run = system.run
    system.run = lambda *given: parts.append(run(*given)) or parts[-1]
    system.energy.register_forward_pre_hook(lambda module, inputs: parts.append(inputs[0]))
    update = next(system.updates(Batch(torch.full((16, 1, 8, 8), 8)), 0.0))
    chains, both = [part for part in parts if len(part) == 16][-1], parts[-1]
    assert torch.equal(both[16:], chains)
    data = both[:16]
    assert data.unique().numel() > 500 if space.levels else data.unique().numel() == 1
    assert (data - data.mean()).abs().max() <= 1 / 16 + 0.01
    d, c = system.energy(data), system.energy(chains)
    expected = d.mean() - c.mean() + 0.3 * (d.square().mean() + c.square().mean())
    torch.testing.assert_close(update.loss, expected)


def test_data_lie_below_chains_after_training():
    torch.manual_seed(0)
    data = Batch(torch.randint(0, 3, (64, 1, 8, 8)))
    system = IGEBM(DIGITS, **SMALL)
    train(system, data, 40)
    noise = torch.randint(0, 17, (64, 1, 8, 8))
    assert (system.score_encoded(data).log_prob > system.score_encoded(Batch(noise)).log_prob.max()).all()


# --- the replay buffer ------------------------------------------------------------------------------


def test_chains_go_on_from_the_buffer_and_are_written_back_once_a_step():
    torch.manual_seed(0)
    system = IGEBM(DIGITS, **small(reset_rate=0.0))
    starts = []
    run = system.run
    system.run = lambda x, *rest: starts.append((x.clone(), end := run(x, *rest))) or end
    data = Batch(torch.randint(17, (32, 1, 8, 8)))
    train(system, data, 1, batch_size=32)
    assert (system.learner.buffer.ages == 1).all()
    train(system, data, 1, batch_size=32)
    assert (system.learner.buffer.ages == 2).all()
    (_, ends), (again, _) = starts  # the second step starts where the first ended, in another order
    assert torch.equal(again.sum((1, 2, 3)).sort().values, ends.sum((1, 2, 3)).sort().values)
    stream = system.updates(data, 0.0)
    before = system.learner.buffer.chains.clone()
    next(stream)
    assert torch.equal(system.learner.buffer.chains, before)  # until the step is taken
    assert next(stream, None) is None
    assert not torch.equal(system.learner.buffer.chains, before)


def test_chains_are_reset_at_the_stated_rate():
    torch.manual_seed(0)
    system = IGEBM(DIGITS, **small(buffer_size=4000, reset_rate=0.05))
    system.learner.buffer.ages.fill_(7)
    _, _, ages = system.learner.buffer.draw(
        torch.arange(4000), torch.zeros(4000, 1, 8, 8), None, system.learner.reset_rate
    )
    assert (ages == 0).sum().item() == pytest.approx(200, abs=4 * math.sqrt(190))
    assert set(ages.tolist()) == {0, 7}


def test_a_chain_keeps_its_condition_and_samples_continue_chains_of_theirs():
    space = DIGITS.conditioned_on(label_space(tuple(range(10))))
    torch.manual_seed(0)
    system = IGEBM(space, **small(reset_rate=0.0))
    data = Batch(torch.randint(17, (32, 1, 8, 8)), torch.arange(32).remainder(3).view(-1, 1).float())
    train(system, data, 1, batch_size=32)
    kept = system.learner.buffer.conditions.clone()
    train(system, data, 2, batch_size=32)
    assert torch.equal(system.learner.buffer.conditions, kept)
    wanted = torch.tensor([[0.0], [1.0], [2.0], [9.0]]).repeat(5, 1)
    noise = torch.full((20, 1, 8, 8), 5.0)
    start = system.learner.buffer.like(noise, wanted)
    for x, label in zip(start, wanted, strict=True):
        same = (system.learner.buffer.chains == x).flatten(1).all(1)
        if label == 9:  # the buffer has none
            assert (x == 5).all()
        else:
            assert same.any()
            assert (system.learner.buffer.conditions[same] == label).all()


def test_the_number_of_steps_is_a_dial_and_none_gives_the_buffers_chains():
    torch.manual_seed(0)
    system = IGEBM(Space("image", (1, 8, 8), None), **SMALL)
    train(system, Batch(torch.randn(16, 1, 8, 8)), 2)
    with system.turned(sample_steps=0):
        start = system.sample_encoded(6, seed=0)
        assert system.sample_evaluations == 0
    assert all((system.learner.buffer.chains == x).flatten(1).all(1).any() for x in start)
    assert (system.sample_encoded(6, seed=0) != start).any()


# --- spectral norm ----------------------------------------------------------------------------------


def test_every_layer_has_spectral_norm_1_after_training_by_svd():
    torch.manual_seed(0)
    system = IGEBM(DIGITS, **SMALL)
    train(system, Batch(torch.randint(17, (64, 1, 8, 8))), 60)
    system.eval()
    layers = [m for m in system.energy.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 10  # first, three blocks with two skips, last
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.01)


def test_frozen_pauses_power_iterations_and_gives_the_same_values():
    torch.manual_seed(0)
    net = nn.Sequential(spectral_norm(nn.Linear(4, 4)), nn.SiLU(), spectral_norm(nn.Linear(4, 1)))
    x = torch.randn(3, 4)
    expected = net.eval()(x)
    net.train()
    before = {name: b.clone() for name, b in net.named_buffers()}
    with frozen(net):
        torch.testing.assert_close(net(x), expected)
        assert all(not m.weight.requires_grad for m in net if parametrize.is_parametrized(m))
    assert net.training
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())
    net(x)
    assert not all(torch.equal(b, before[name]) for name, b in net.named_buffers())
