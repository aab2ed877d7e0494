"""StyleGAN2 with adaptive augmentation: each mechanism against its formula, and what happens without it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fivefold.gan.stylegan2_ada import ADJUST_EVERY, StyleGAN2ADA
from fivefold.nets.equalised import EqualConv, EqualLinear, with_deviation
from fivefold.nets.stylegan import ModulatedConv
from fivefold.space import Batch, Space
from fivefold.tools.augment import augment, colours, move, positions
from fivefold.tools.games import path_lengths, r1_penalty

DIGITS = Space("image", (1, 8, 8), 17)


def system(**options) -> StyleGAN2ADA:
    torch.manual_seed(0)
    return StyleGAN2ADA(DIGITS, latent=8, width=4, **options)


def step(s: StyleGAN2ADA, batch: Batch, optimise: bool = False) -> list[dict]:
    """One step of the game; what each player's update logged, and its loss."""
    optimizers, found, game = s.optimizers(), [], s.updates(batch, 0.0)
    update = next(game)
    while update is not None:
        found.append({"loss": update.loss.item(), **update.stats})
        if optimise:
            update.loss.backward(inputs=list(update.player.parameters()))
            optimizers[update.player].step()
        update = _send(game, {k: v.detach() for k, v in update.stats.items()})
    return found


def _send(game, stats):
    try:
        return game.send(stats)
    except StopIteration:
        return None


BATCH = Batch(torch.randint(17, (16, 1, 8, 8), generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("up", [False, True])
def test_modulation_is_a_convolution_with_each_examples_own_weights(up):
    """The paper's Eq. 1 and 3, example by example; its scale cancels, which without demodulation it does not."""
    torch.manual_seed(0)
    x, w = torch.randn(5, 3, 6, 6), torch.randn(5, 4)
    conv = ModulatedConv(3, 7, 4)
    for i, style in enumerate(conv.style(w)):
        scaled = conv.weight * conv.scale * style[None, :, None, None]
        own = scaled / (scaled.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        torch.testing.assert_close(conv(x, w)[i], F.conv2d(x[i], own, padding=1), rtol=1e-4, atol=1e-5)

    def variance_ratio(demodulate: bool) -> float:
        conv = ModulatedConv(32, 64, 4, demodulate=demodulate, up=up)
        noise, style = torch.randn(4, 32, 16, 16), torch.randn(4, 4) * torch.tensor([[1.0], [3], [9], [27]])
        y = conv(noise, style)[..., 2:-2, 2:-2].var((1, 2, 3))
        return (y.max() / y.min()).item()

    assert variance_ratio(True) < 1.6
    assert variance_ratio(False) > 3


def test_equalised_layers_keep_variance_and_learn_alike():
    torch.manual_seed(0)
    x = torch.randn(64, 50, 6, 6)
    assert EqualConv(50, 200)(x)[..., 1:-1, 1:-1].std().item() == pytest.approx(1, abs=0.05)
    for rate in (1.0, 0.01):
        layer = EqualLinear(50, 400, bias=1.0, rate=rate)
        assert layer(x[..., 0, 0]).var(1).mean().sqrt().item() == pytest.approx(1, abs=0.1)
        before = layer(x[..., 0, 0]).detach()
        optimizer = torch.optim.SGD(layer.parameters(), 1e-3)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        moved = (layer(x[..., 0, 0]) - before).abs().mean().item()
        mean_of_one_plus_normal = math.erf(0.5**0.5) + math.sqrt(2 / (math.pi * math.e))  # of its absolute value
        assert moved == pytest.approx(rate * 1e-3 * mean_of_one_plus_normal, rel=0.2)


def test_the_deviation_is_seen_and_is_zero_for_copies():
    torch.manual_seed(0)
    x = torch.randn(8, 3, 2, 2)
    found = with_deviation(x, 4)[:, 3]
    groups = torch.stack([x[[i, i + 2, i + 4, i + 6]].std(0, correction=0).mean() for i in (0, 1)])
    torch.testing.assert_close(found[:, 0, 0], groups.repeat(4))
    assert with_deviation(x[:1].expand(8, -1, -1, -1), 4)[:, 3].max() < 1e-3
    varied, copies = torch.rand(4, 1, 8, 8), torch.rand(1, 1, 8, 8).expand(4, -1, -1, -1)
    for group, differs in ((4, True), (1, False)):
        critic = system(group=group).critic
        alone = torch.cat([critic(copies[:1]), critic(varied[1:2])])
        together = torch.cat([critic(copies)[:1], critic(varied)[1:2]])
        assert torch.allclose(alone, together, atol=1e-5) is not differs


def test_r1_and_path_lengths_of_linear_maps():
    """R1 of a linear critic is |a|^2; the mean squared path length of a linear generator is |A|^2 / (H W)."""
    torch.manual_seed(0)
    a, x = torch.randn(12), torch.randn(5, 12, requires_grad=True)
    assert r1_penalty(x @ a, x).item() == pytest.approx(a.square().sum().item(), rel=1e-5)
    matrix, styles = torch.randn(3, 4, 32), torch.randn(20_000, 3, 4, requires_grad=True)
    images = torch.einsum("blk,lkp->bp", styles, matrix).view(-1, 2, 4, 4)
    expected = matrix.square().sum((1, 2)).mean() / 16
    lengths = path_lengths(images, styles)
    assert lengths.square().mean().item() == pytest.approx(expected.item(), rel=0.05)


def test_penalties_are_lazy_and_weighted():
    """Present every so many steps with that many times the weight, else absent; gone where the weight is 0."""
    s = system(r1_every=3, path_every=2, r1_weight=1e4, path_weight=1e4, ada_examples=0)
    losses = [[u["loss"] for u in step(s, BATCH)] for _ in range(6)]
    assert [critic > 100 for critic, _ in losses] == [True, False, False] * 2
    assert [generator > 100 for _, generator in losses] == [True, False] * 3
    assert all(max(u["loss"] for u in step(system(r1_weight=0.0, path_weight=0.0), BATCH)) < 100 for _ in range(2))


def test_mixing_uses_a_second_style_from_a_random_layer_on():
    s = system()
    w, other = torch.zeros(200, 8), torch.ones(200, 8)
    layers = s.generator.mixed(w, other, 0.9)[..., 0]
    assert (layers.diff(dim=1) >= 0).all()  # the first style first
    assert (layers[:, 0] == 0).all()
    assert 0.8 < (layers[:, -1] == 1).float().mean().item() < 0.97
    assert len(layers.unique(dim=0)) == s.generator.synthesis.styles  # every place to change, and none
    assert not s.generator.mixed(w, other, 0.0).any()


@pytest.mark.parametrize(("real", "moves"), [(1.0, 1), (-1.0, -1)])
def test_augmentation_follows_overfitting(real, moves):
    """Its probability rises while the critic is sure of the data and falls after that, at the stated speed."""
    s = system(ada_examples=1000, augmentation=0.5)
    with torch.no_grad():
        s.critic.head.out.weight.zero_()
        s.critic.head.out.bias.fill_(real)
    for _ in range(2 * ADJUST_EVERY):
        step(s, BATCH)
    assert s.probability.item() == pytest.approx(0.5 + moves * 2 * ADJUST_EVERY * 16 / 1000, abs=1e-6)
    held = system(ada_examples=0, augmentation=0.5)
    for _ in range(ADJUST_EVERY):
        step(held, BATCH)
    assert held.probability.item() == 0.5


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 12), (4, 16, 16)])
def test_augmentation_is_neutral_at_zero_and_differentiable(shape):
    torch.manual_seed(0)
    x = torch.randn(6, *shape, requires_grad=True)
    torch.testing.assert_close(augment(x, 0.0), x, atol=1e-5, rtol=1e-5)
    changed = augment(x, 1.0)
    assert not torch.isclose(changed, x, atol=1e-2).flatten(1).all(1).any()
    (gradient,) = torch.autograd.grad(changed.square().sum(), x)
    assert gradient.isfinite().all()
    many = x[:1].expand(4000, -1, -1, -1)
    for maps, changes in ((positions, 7), (colours, 4)):  # most of them untouched: nothing leaks into the samples
        found = maps(many, 0.1)
        same = (found - torch.eye(*found.shape[1:])).abs().amax((1, 2)) < 1e-6
        assert 0.9 ** (changes + 1) - 0.03 < same.float().mean().item() < 0.9 ** (changes - 3)


def test_positions_move_pixels_to_where_they_say():
    x = torch.randn(1, 2, 5, 6)
    flip, shift = torch.diag(torch.tensor([-1.0, 1, 1])), torch.eye(3)
    shift[:2, 2] = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(move(x, flip[None]), x.flip(3), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(move(x, shift[None])[..., :3, :5], x[..., 2:, 1:], atol=1e-5, rtol=1e-5)
    turn = torch.tensor([[[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]])
    square = torch.randn(1, 1, 6, 6)
    torch.testing.assert_close(move(square, turn), square.rot90(1, (2, 3)), atol=1e-5, rtol=1e-5)


def test_truncation_moves_styles_to_their_mean():
    s = system().eval()
    for _ in range(3):
        step(s, BATCH)
    spread = [s.sample(64, seed=0, truncation=psi).astype(float).var(0).mean() for psi in (0.0, 0.5, 1.0)]
    assert spread[0] < 0.2 * spread[2]
    assert spread[0] < spread[1] < spread[2]
    wide = system(truncation=0.0).generator.mapping(torch.randn(4000, 8)).mean(0)
    assert (s.w_mean - wide).abs().max() < 0.3


def test_both_players_gain():
    """A few steps make the critic tell data from samples, and R1 holds its gradient down."""
    gradients = []
    for weight in (0.0, 100.0):
        s = system(r1_weight=weight, r1_every=1, path_weight=0.0, ada_examples=0)
        for _ in range(10):
            step(s, BATCH, optimise=True)
        x = BATCH.x.float().div(8).sub(1).requires_grad_()
        gradients.append(r1_penalty(s.critic(x), x).item())
    assert gradients[1] < gradients[0] / 3
