"""DCGAN: every game, every size of image, players kept apart, batch norm over ranks."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.distributions import Normal

from fivefold import catalog
from fivefold.errors import OptionError
from fivefold.gan.dcgan import DCGAN
from fivefold.nets.adversarial import LAYOUTS
from fivefold.nets.norm import BatchNorm
from fivefold.space import Batch, Column, Space, label_space
from fivefold.tools.games import GAMES

DIGITS = Space("image", (1, 8, 8), 17)
PLANE = Space("table", (2,), columns=(Column("x"), Column("y")))


def example(space, n=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(space.levels, (n, *space.shape), generator=generator) if space.levels else None
    x = torch.randn(n, *space.shape, generator=generator) if x is None else x
    condition = space.condition and torch.randint(space.condition.levels, (n, 1), generator=generator).float()
    return Batch(x, condition)


def train(system, data, steps, batch_size=64):
    """The plainest loop; returns how often each player moved."""
    optimizers, moves = system.optimizers(), dict.fromkeys(system.optimizers(), 0)
    for step in range(steps):
        index = torch.arange(step * batch_size, (step + 1) * batch_size) % len(data.x)
        batch = Batch(data.x[index], None if data.condition is None else data.condition[index])
        for update in system.updates(batch, step / steps):
            update.loss.backward(inputs=list(update.player.parameters()))
            optimizers[update.player].step()
            optimizers[update.player].zero_grad()
            moves[update.player] += 1
    return moves


# layout: (of the generator at 32x32: channels and stride of each layer; sides of the critic's last features, at 9x17)
LAYERS = {
    "fine": ([(32, 2), (16, 2), (8, 2), (4, 2), (3, 1)], (4, 8)),
    "strided": ([(16, 2), (8, 2), (4, 2), (3, 2)], (5, 9)),
    "alternating": ([(16, 2), (16, 2), (8, 1), (8, 2), (4, 1), (4, 2), (3, 1)], (5, 9)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_mirrored_and_reach_the_pixels(layout):
    torch.manual_seed(0)
    expected, last = LAYERS[layout]
    system = DCGAN(Space("image", (3, 32, 32), 256), layout=layout, width=4, latent=8)
    convs = [m for m in system.generator.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert [(conv.out_channels, conv.stride[0]) for conv in convs] == expected[1:]
    assert system.generator.start == (expected[0][0], 4, 4)
    *mirror, whole = [m for m in system.critic.modules() if isinstance(m, nn.Conv2d)]
    assert whole.out_channels == 1
    assert [(conv.in_channels, conv.stride[0]) for conv in reversed(mirror)] == expected[1:]
    odd = DCGAN(Space("image", (3, 9, 17), 256), layout=layout, width=4, latent=8)
    assert odd.critic.layers[-1].weight.shape == (1, odd.generator.start[0], *last)
    assert odd.critic(odd.generator(torch.randn(2, 8))).shape == (2,)
    with pytest.raises(ValueError, match=r"fine\|strided"):
        DCGAN(DIGITS, layout="round")


@pytest.mark.parametrize("loss", GAMES)
def test_players_are_isolated_and_take_their_turns(loss):
    torch.manual_seed(0)
    system = DCGAN(DIGITS, game=loss, critics=3, width=4, latent=8)
    optimizers = system.optimizers()
    players = []
    for update in system.updates(example(DIGITS), 0.0):
        before = copy.deepcopy(list(system.parameters()))
        update.loss.backward(inputs=list(update.player.parameters()))
        optimizers[update.player].step()
        mine = {id(p) for p in update.player.parameters()}
        for old, new in zip(before, system.parameters(), strict=True):
            assert id(new) in mine or torch.equal(old, new)
            assert (new.grad is not None) or id(new) not in mine
            new.grad = None
        players.append(update.player)
    assert players == [system.critic] * 3 + [system.generator]
    bound = max(p.abs().max().item() for p in system.critic.parameters())
    assert (bound <= 0.01) == (loss == "wasserstein")
    assert system.critic in system.networks() or loss == "wasserstein-gp"


@pytest.mark.parametrize("loss", GAMES)
def test_each_player_minimises_its_games_loss(loss):
    torch.manual_seed(0)
    system, scores, game = DCGAN(DIGITS, game=loss, width=4, latent=8, critics=1, penalty=0.0), [], GAMES[loss]
    system.critic.register_forward_hook(lambda module, inputs, y: scores.append(y.detach()))
    updates = system.updates(example(DIGITS), 0.0)
    torch.testing.assert_close(next(updates).loss, game.discriminator(*scores[:2]))
    scores.clear()
    torch.testing.assert_close(next(updates).loss, game.generator(scores[-1], scores[0]))
    losses = []
    for system.penalty in (0.0, 10.0):
        torch.manual_seed(1)
        losses.append(next(system.eval().updates(example(DIGITS), 0.0)).loss.item())
    assert (losses[1] > losses[0] + 1e-3) is game.penalised


def test_weights_start_small_and_samples_lie_within_the_levels():
    system = DCGAN(DIGITS, latent=8)
    convolutions = [m for m in system.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    weights = torch.cat([m.weight.flatten() for m in convolutions])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    with torch.no_grad():
        system.generator.layers[-2].weight.mul_(1e4)
        assert system.generator(torch.randn(9, 8)).abs().max() <= 1


def test_truncation_bounds_the_codes_of_samples():
    system, seen = DCGAN(DIGITS, latent=8), []
    system.generator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].abs().max().item()))
    for bound in (0.0, 0.5):
        system.sample_encoded(9, seed=0) if not bound else system.sample(9, seed=0, truncation=bound)
    assert seen[0] > 1.5
    assert seen[1] <= 0.5


@pytest.mark.parametrize("name", ["dcgan", "biggan", "progan", "stylegan2-ada"])
def test_every_system_keeps_the_rules_of_the_game_it_is_told(name):
    """Clipped weights, the gradient penalty in the loss; and chains of proposals at whatever size the critic sees."""
    space = Space("image", (1, 7, 9), levels=17)
    batch = example(space)
    clipped = catalog.build(name, space, game="wasserstein", width=4)
    list(clipped.updates(batch, 0.5))
    assert max(p.abs().max().item() for p in clipped.critic.parameters()) <= 0.01
    losses = []
    for penalty in (0.0, 10.0):
        torch.manual_seed(0)
        system = catalog.build(name, space, game="wasserstein-gp", width=4, penalty=penalty)
        losses.append(next(system.eval().updates(batch, 0.5)).loss.item())
    assert losses[1] > losses[0] + 1e-3
    chain = catalog.build(name, space, game="non-saturating", sampler="metropolis-hastings", width=4)
    list(chain.updates(batch, 0.3))
    assert chain.sample_encoded(2, seed=0).shape == (2, 1, 7, 9)


def test_chains_that_the_critic_accepts_follow_the_data():
    """Fakes of N(0, 1) and a critic that is ln N(0.5, 0.7^2) - ln N(0, 1): the ends of chains are of the former."""
    wanted, made = Normal(0.5, 0.7), Normal(0.0, 1.0)
    system = DCGAN(Space("table", (1,), columns=(Column("x"),)), sampler="metropolis-hastings").eval()
    system.made = lambda n, condition: torch.randn(n, 1)
    system.judge = lambda x, condition: (wanted.log_prob(x) - made.log_prob(x)).squeeze(1)
    x = system.sample_encoded(20_000, seed=0)
    assert x.mean().item() == pytest.approx(0.5, abs=4 * 0.7 / 20_000**0.5)
    assert x.std().item() == pytest.approx(0.7, rel=4 / 40_000**0.5)
    assert system.sample_evaluations == 42
    with pytest.raises(OptionError, match="non-saturating"):
        DCGAN(PLANE, sampler="metropolis-hastings", game="hinge")


def test_the_generator_does_not_learn_from_the_critics_turn():
    system = DCGAN(DIGITS, width=4)
    update = next(system.updates(example(DIGITS), 0.0))
    grads = torch.autograd.grad(update.loss, list(system.generator.parameters()), allow_unused=True)
    assert all(g is None for g in grads)


def test_a_penalised_critic_treats_examples_independently():
    system = DCGAN(DIGITS, game="wasserstein-gp", width=4)
    assert not [m for m in system.critic.modules() if isinstance(m, BatchNorm)]
    assert [m for m in system.generator.modules() if isinstance(m, BatchNorm)]
    x = torch.randn(6, 1, 8, 8)
    torch.testing.assert_close(system.critic(x)[:2], system.critic(x[:2]))


def test_the_condition_reaches_both_players():
    system = DCGAN(DIGITS.conditioned_on(label_space(tuple(range(10)))), width=4).eval()
    zero, one = torch.zeros(4, 1), torch.ones(4, 1)
    z, x = torch.randn(4, system.latent), torch.randn(4, 1, 8, 8)
    assert not torch.allclose(system.generator(z, zero), system.generator(z, one))
    assert not torch.allclose(system.critic(x, zero), system.critic(x, one))


def mean_discrepancy(x, y, width=0.5):
    """Squared maximum mean discrepancy under a Gaussian kernel: 0 for equal laws, at most 2."""
    kernel = [torch.exp(-(torch.cdist(a, b) ** 2) / (2 * width**2)).mean() for a, b in ((x, x), (y, y), (x, y))]
    return (kernel[0] + kernel[1] - 2 * kernel[2]).item()


@pytest.mark.slow
@pytest.mark.parametrize("loss", GAMES)
def test_every_game_learns_a_ring_of_gaussians(loss):
    torch.manual_seed(0)
    angle = torch.randint(8, (4096,)) * torch.pi / 4
    data = Batch(1.4 * torch.stack([angle.cos(), angle.sin()], 1) + 0.17 * torch.randn(4096, 2))
    wasserstein = GAMES[loss].clipped or GAMES[loss].penalised
    beta1 = 0.0 if GAMES[loss].clipped else 0.5
    system = DCGAN(PLANE, game=loss, latent=2, critics=5 if wasserstein else 3, lr=1e-3, beta1=beta1)
    untrained = mean_discrepancy(system.sample_encoded(1000, seed=0), data.x[:1000])
    train(system, data, 400)
    trained = mean_discrepancy(system.sample_encoded(1000, seed=0), data.x[:1000])
    assert trained < untrained / 5, (untrained, trained)


def _normalise(rank, folder, x, weight):
    distributed.init_process_group("gloo", f"file://{folder}/store", world_size=2, rank=rank)
    torch.set_num_threads(1)
    norm = BatchNorm(3)
    part = x[:4] if rank == 0 else x[4:]
    y = norm(part.requires_grad_())
    (y * weight[:4] if rank == 0 else y * weight[4:]).sum().backward()
    found = (y.detach(), part.grad, norm.weight.grad, norm.running_mean, norm.running_var)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_batch_norm_over_two_ranks_is_batch_norm_of_the_whole_batch(tmp_path):
    """Outputs, gradients and running statistics, with parts of unequal size, against torch's own."""
    torch.manual_seed(0)
    x, weight = 3 + 2 * torch.randn(7, 3, 5, 5), torch.randn(7, 3, 5, 5)
    torch.multiprocessing.spawn(_normalise, (str(tmp_path), x, weight), nprocs=2)
    (y0, g0, w0, mean0, var0), (y1, g1, w1, mean1, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    theirs = nn.BatchNorm2d(3)
    y = theirs(x.requires_grad_())
    (y * weight).sum().backward()
    for ours, truth in (
        (torch.cat([y0, y1]), y),
        (torch.cat([g0, g1]), x.grad),
        (w0 + w1, theirs.weight.grad),
        (mean0, theirs.running_mean),
        (mean1, theirs.running_mean),
        (var0, theirs.running_var),
    ):
        torch.testing.assert_close(ours, truth, atol=2e-5, rtol=1e-5)
