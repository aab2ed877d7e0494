"""StyleGAN2 with adaptive augmentation: each mechanism against its formula, and what happens without it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fivefold.gan import stylegan2_ada
from fivefold.gan.stylegan2_ada import ADJUST_EVERY, PATH_RATE, StyleGAN2ADA
from fivefold.nets.equalised import EqualConv, EqualLinear, with_deviation
from fivefold.nets.stylegan import ModulatedConv, ResidualDown, StyledLayer, ToImage
from fivefold.space import Batch, Space, label_space
from fivefold.tools import resample
from fivefold.tools.augment import augment, colours, move, positions
from fivefold.tools.games import path_lengths, r1_penalty
from fivefold.tools.resample import blur, conv_down, conv_up, downsample, upsample

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


def test_the_images_layers_follow_the_styles_scale_and_the_others_do_not():
    x, w, found = torch.randn(2, 3, 6, 6), torch.zeros(2, 4), {}
    for scale in (1.0, 3.0):
        torch.manual_seed(0)
        for layer in (ToImage(3, 5, 4), StyledLayer(3, 5, 4)):
            torch.nn.init.constant_(layer.conv.style.bias, scale)
            found[type(layer), scale] = layer(x, w)
    torch.testing.assert_close(found[ToImage, 3.0], 3 * found[ToImage, 1.0])
    torch.testing.assert_close(found[StyledLayer, 3.0], found[StyledLayer, 1.0])


def test_the_mapping_takes_directions_and_the_class_and_learns_slowly():
    torch.manual_seed(0)
    s = StyleGAN2ADA(DIGITS.conditioned_on(label_space(("a", "b"))), latent=8, width=4)
    z, first, second = torch.randn(5, 8), torch.zeros(5, 1), torch.ones(5, 1)
    w = s.generator.mapping(z, first)
    torch.testing.assert_close(s.generator.mapping(7 * z, first), w)
    torch.testing.assert_close(system().generator.mapping(7 * z), system().generator.mapping(z))
    for other in (s.generator.mapping(z.roll(1, 0), first), s.generator.mapping(z, second)):
        assert (w - other).abs().amax(1).min() > 0.01
    assert {layer.rate for layer in s.generator.mapping.layers} == {0.01}
    x = torch.randn(5, 1, 8, 8)
    assert (s.critic(x, first) - s.critic(x, second)).abs().min() > 1e-3


def test_noise_of_a_learnt_strength_is_one_map_for_all_channels():
    layer, x, w = StyledLayer(3, 5, 4), torch.randn(2, 3, 6, 6), torch.randn(2, 4)
    torch.testing.assert_close(layer(x, w), layer(x, w))  # none at first
    layer.strength.data.fill_(1e3)
    y = layer(x, w)
    y = torch.where(y > 0, y, 5 * y) / (1e3 * math.sqrt(2))  # before the LeakyReLU
    torch.testing.assert_close(y, y[:, :1].expand_as(y), atol=0.02, rtol=0)
    assert 0.5 < y[:, 0].std() < 1.5


def test_the_image_is_the_sum_of_those_of_all_resolutions():
    s, parts = system(), []
    s.generator.synthesis.to_image[0].bias.data.fill_(1.0)
    for layer in s.generator.synthesis.to_image:
        layer.register_forward_hook(lambda module, inputs, y: parts.append(y))
    image = s.generator(torch.randn(3, 8))
    assert [part.shape[-1] for part in parts] == [4, 8]
    torch.testing.assert_close(image, upsample(parts[0]) + parts[1])


def test_a_critics_block_is_residual():
    torch.manual_seed(0)
    block, plain, x = ResidualDown(3, 5), ResidualDown(3, 5, residual=False), torch.randn(2, 3, 8, 8)
    block.second.weight.data.zero_()
    torch.testing.assert_close(block(x), block.skip(downsample(x)) / math.sqrt(2))
    plain.second.weight.data.zero_()
    assert not plain(x).any()


def test_resolutions_change_by_the_binomial_filter():
    """Its response to a point; upsampling is zeros between the pixels and the filter; so with a convolution beside."""
    torch.manual_seed(0)
    taps, point, x = torch.tensor([1.0, 3, 3, 1]) / 8, torch.zeros(1, 1, 7, 7), torch.randn(2, 3, 6, 8)
    point[0, 0, 3, 3] = 1
    torch.testing.assert_close(blur(point, 1)[0, 0, 1:5, 1:5], torch.outer(taps, taps))
    between = torch.zeros(2, 3, 12, 16)
    between[..., ::2, ::2] = x
    torch.testing.assert_close(upsample(x), blur(F.pad(between, (1, 0, 1, 0)), 1, gain=4.0))
    torch.testing.assert_close(downsample(x), blur(x, 1)[..., ::2, ::2])
    identity = torch.zeros(3, 3, 3, 3)
    identity[range(3), range(3), 1, 1] = 1
    torch.testing.assert_close(conv_up(x, identity), upsample(x))
    torch.testing.assert_close(conv_down(x, identity), downsample(x))


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
    both = with_deviation(torch.cat([x[:6], 2 * x[2:]]), 4, batches=2)  # neither batch is seen in the other
    torch.testing.assert_close(both, torch.cat([with_deviation(x[:6], 4), with_deviation(2 * x[2:], 4)]))
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
    s = system(residual=True, r1_every=3, path_every=2, r1_weight=1e4, path_weight=1e4, ada_examples=0)
    losses = [[u["loss"] for u in step(s, BATCH)] for _ in range(6)]
    assert [critic > 100 for critic, _ in losses] == [True, False, False] * 2
    assert [generator > 100 for _, generator in losses] == [True, False] * 3
    assert all(max(u["loss"] for u in step(system(r1_weight=0.0, path_weight=0.0), BATCH)) < 100 for _ in range(2))


def test_path_lengths_are_held_to_their_running_mean(monkeypatch):
    """The true mean at first; a penalty is worth the steps that it stands for."""
    s, found, mean = system(path_every=4), [], 0.0
    true = s._path_lengths
    monkeypatch.setattr(s, "_path_lengths", lambda *given: found.append(true(*given)) or found[-1])
    for turn in range(3):
        losses = []
        for s.path_weight in (0.0, 2.0):
            torch.manual_seed(turn)
            s.steps.fill_(4 * turn)
            update = s.generator_update(torch.zeros(16, *DIGITS.shape), None, None)
            losses.append(update.loss.item())
        lengths = found[-1].detach()
        wanted = 4 * 2.0 * (lengths - (mean if turn else lengths.mean())).square().mean().item()
        assert losses[1] - losses[0] == pytest.approx(wanted, rel=1e-3)
        s._average({**update.stats}, 4 * turn)
        mean += (lengths.mean().item() - mean) * max(PATH_RATE, 1 / (turn + 1))
        assert s.path_mean.item() == pytest.approx(mean, rel=1e-4)
    assert len(found) == 3


@pytest.mark.parametrize("mixing", [0.0, 1.0])
def test_styles_are_mixed_in_training_and_not_in_samples(mixing):
    s, seen = system(mixing=mixing), []
    s.generator.synthesis.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    step(s, BATCH)
    assert len(seen) == 3  # for the critic, for the generator, for the path lengths
    assert all(bool((w != w[:, :1]).any()) is (mixing > 0) for w in seen)
    seen.clear()
    s.sample(4)
    assert torch.equal(seen[0], seen[0][:, :1].expand_as(seen[0]))


def test_all_that_the_critic_sees_is_augmented(monkeypatch):
    s, seen = system(augmentation=0.3), []
    monkeypatch.setattr(stylegan2_ada, "augment", lambda x, probability: x + 100 * probability)
    s.critic.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    step(s, BATCH)
    assert len(seen) == 2  # data and samples for the critic, samples for the generator
    assert all(x.min() > 20 for x in seen)


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
    grey, plain = x.detach()[:, :1], torch.full((6, 1, 8, 8), 0.5)
    pairs = torch.stack([grey.flatten(1), augment(grey, 1.0).flatten(1)], 1)
    assert max(torch.corrcoef(pair)[0, 1].abs().item() for pair in pairs) < 0.95  # moved, not only recoloured
    assert (augment(plain, 1.0) - plain).abs().amax((1, 2, 3)).min() > 1e-3  # and the other way round
    many = x[:1].expand(4000, -1, -1, -1)
    for maps, changes in ((positions, 7), (colours, 4)):  # most of them untouched: nothing leaks into the samples
        found = maps(many, 0.1)
        same = (found - torch.eye(*found.shape[1:])).abs().amax((1, 2)) < 1e-6
        assert 0.9 ** (changes + 1) - 0.03 < same.float().mean().item() < 0.9 ** (changes - 3)


EYE2, EYE3, GREY = torch.eye(2), torch.eye(3), torch.full((3, 3), 1 / 3)


def same(a, b):
    return (a - b).abs().amax((1, 2)) < 1e-4


def rotates(m):
    return same(m @ m.mT, torch.eye(m.shape[1])) & (m.det() > 0) & ~same(m, torch.eye(m.shape[1]))


# name: (chance of changing anything where it is made, which linear parts and shifts are its own, its strength and the
# deviation of that)
MOVES = {
    "flip": (1 / 2, lambda m, s: same(m, torch.tensor([[-1.0, 0], [0, 1]])), None, 0),
    "quarter turn": (3 / 4, lambda m, s: rotates(m) & same(m, m.round()), None, 0),
    "whole shift": (3 / 4, lambda m, s: same(m, EYE2) & (s == s.round()).all(1), None, 0),
    "scaling": (1, lambda m, s: same(m, m[:, :1, :1] * EYE2) & (m[:, 0, 0] > 0) & ~same(m, EYE2),
                lambda m, s: m[:, 0, 0].log2(), 0.2),
    "rotation": (1, lambda m, s: rotates(m) & ~same(m, m.round()), None, 0),
    "stretching": (1, lambda m, s: same(m, m.diagonal(dim1=1, dim2=2).diag_embed()) & ~same(m, EYE2)
                   & ((m.det() - 1).abs() < 1e-4) & (m[:, 0, 0] > 0), lambda m, s: m[:, 0, 0].log2(), 0.2),
    "shift": (1, lambda m, s: same(m, EYE2) & (s != s.round()).all(1), lambda m, s: s, 1.0),
}  # fmt: skip
COLOURS = {
    "brightness": (1, lambda m, s: same(m, EYE3), lambda m, s: s[:, 0], 0.2),
    "contrast": (1, lambda m, s: same(m, m[:, :1, :1] * EYE3) & ~same(m, EYE3), lambda m, s: m[:, 0, 0].log2(), 0.5),
    "luma flip": (1 / 2, lambda m, s: same(m, EYE3 - 2 * GREY), None, 0),
    "hue": (1, lambda m, s: rotates(m) & same(m @ GREY, GREY), None, 0),
    "saturation": (1, lambda m, s: same(m, GREY + (m[:, 0, 0] - m[:, 0, 1])[:, None, None] * (EYE3 - GREY))
                   & ~same(m, EYE3) & (m[:, 0, 0] > m[:, 0, 1]), lambda m, s: (m[:, 0, 0] - m[:, 0, 1]).log2(), 1.0),
}  # fmt: skip


@pytest.mark.parametrize(("maps", "changes"), [(positions, MOVES), (colours, COLOURS)], ids=["moves", "colours"])
def test_each_change_is_made_as_often_and_as_strongly_as_it_should(maps, changes):
    torch.manual_seed(0)
    n, p = 40_000, 0.1
    found = maps(torch.zeros(1, 3, 8, 8).expand(n, -1, -1, -1), p)
    linear, shift = found[:, : found.shape[2] - 1, :-1], found[:, : found.shape[2] - 1, -1]
    for name, (chance, alone, strength, deviation) in changes.items():
        hidden = {name, "whole shift"} if name == "shift" else {name}  # the sum of both is no whole one
        share = p * chance * math.prod(1 - p * changes[other][0] for other in changes if other not in hidden)
        mine = alone(linear, shift) & (shift.any(1) == (name in ("whole shift", "shift", "brightness")))
        assert mine.float().mean().item() == pytest.approx(share, abs=5 * math.sqrt(share / n)), name
        if strength is not None:
            assert strength(linear[mine], shift[mine]).std().item() == pytest.approx(deviation, rel=0.1), name


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


def test_r1_holds_the_critics_gradient_down():
    gradients = []
    for weight in (0.0, 100.0):
        s = system(r1_weight=weight, r1_every=1, path_weight=0.0, ada_examples=0)
        for _ in range(30):
            step(s, BATCH, optimise=True)
        x = BATCH.x.float().div(8).sub(1).requires_grad_()
        gradients.append(r1_penalty(s.critic(x), x).item())
    assert gradients[1] < gradients[0] / 3


def test_the_rate_falls_at_the_end_where_it_is_asked_to():
    assert [system(decay=0.0).learning_rate(progress) for progress in (0, 0.5, 1)] == [1, 1, 1]
    falling = system(decay=0.4)
    assert [falling.learning_rate(progress) for progress in (0, 0.6, 0.8, 1)] == pytest.approx([1, 1, 0.505, 0.01])


def test_a_filter_that_was_first_used_in_another_precision_or_without_gradients_serves_later():
    resample._matrix.cache_clear()
    x = torch.randn(2, 3, 5, 7)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        blur(x, padding=1)
    x.requires_grad_()
    y = blur(x, padding=1)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, resample._convolved(x, 1.0, padding=1, stride=1, up=False))
    y.square().sum().backward()
    assert x.grad.abs().sum() > 0
