"""Progressive growing: the schedule, the fade-in on both sides, what keeps signals in bounds, the penalties."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fivefold.gan.progan import ProGAN, at_level, level_at
from fivefold.nets.equalised import EqualConv, EqualLinear, pixel_norm
from fivefold.space import Batch, Space, label_space
from fivefold.tools.distributions import truncated_normal

PICTURES = Space("image", (3, 16, 16), 256)
BATCH = Batch(torch.randint(256, (8, 3, 16, 16), generator=torch.Generator().manual_seed(0)))


def system(**options) -> ProGAN:
    torch.manual_seed(0)
    return ProGAN(PICTURES, **{"latent": 8, "width": 4, **options})


def test_the_schedule_holds_and_fades_in_turn():
    found = [level_at(p, 2, 0.8) for p in (0, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 1.0)]
    assert found == pytest.approx([0, 0, 0.5, 1, 1, 1.5, 2, 2])
    assert level_at(0.0, 3, 0.0) == 3
    assert level_at(0.0, 0, 0.5) == 0


@pytest.mark.parametrize("level", [0, 1])
def test_a_new_resolution_enters_smoothly_in_both_players(level):
    """Just above a whole level nothing has changed; half-way both resolutions count; at the next one only the new."""
    s, z, x = system(), torch.randn(5, 8), torch.randn(5, 3, 4 * 2 ** (level + 1), 4 * 2 ** (level + 1))
    half, small = level + 0.5, F.avg_pool2d(x, 2)
    old, new = (s.generator(z, None, level + i) for i in (0, 1))
    large = F.interpolate(old, scale_factor=2)
    torch.testing.assert_close(s.generator(z, None, level + 1e-6), large, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(s.generator(z, None, half), (large + new) / 2)
    torch.testing.assert_close(s.critic(x, None, level + 1e-6), s.critic(small, None, level), atol=1e-4, rtol=1e-4)
    between = s.critic(x, None, half)
    assert not torch.allclose(between, s.critic(x, None, level + 1), atol=1e-4)
    assert not torch.allclose(between, s.critic(small, None, level), atol=1e-4)


def test_data_are_blurred_as_the_samples_are():
    x = torch.randn(2, 3, 16, 16)
    small = F.avg_pool2d(x, 4)
    torch.testing.assert_close(at_level(x, 0, 2), small)
    torch.testing.assert_close(at_level(x, 2, 2), x)
    blurred = at_level(x, 0.25, 2)
    torch.testing.assert_close(F.avg_pool2d(blurred, 2), small)  # the mean stays, the detail comes in
    detail = F.avg_pool2d(x, 2) - F.interpolate(small, scale_factor=2)
    torch.testing.assert_close(blurred - F.interpolate(small, scale_factor=2), detail / 4)


def test_growth_follows_progress_and_only_what_is_there_learns():
    s, seen = system(growth=1.0), []
    s.critic.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for progress, level, learning in ((0.0, 0, [False, False]), (0.375, 0.5, [True, False]), (1.0, 2, [True, True])):
        for update in s.updates(BATCH, progress):
            update.loss.backward(inputs=list(update.player.parameters()))
        assert s.level.item() == pytest.approx(level)
        torch.testing.assert_close(seen[0], at_level(s._canvas(BATCH.x), level, 2))  # the data, first of all
        seen.clear()
        for player in (s.generator, s.critic):
            assert [any(p.grad is not None for p in block.parameters()) for block in player.blocks] == learning
        small = s.sample(2, seed=0)
        assert small.shape == (2, 3, 16, 16) or small.shape == (2, 16, 16, 3)
        s.zero_grad(set_to_none=True)


def test_pixel_norm_keeps_the_generators_signals():
    """Whatever its weights and its code's length, every position has a mean square of 1."""
    s, seen = system(), []
    for to_image in s.generator.to_image:
        to_image.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        for parameter in s.generator.blocks.parameters():
            parameter.mul_(30)
        s.generator.dense.bias.normal_()  # without it the next norm would take the code's length out too
    z = torch.randn(4, 8)
    found = s.generator(z, None, 1.5)
    assert len(seen) == 2
    for x in seen:
        torch.testing.assert_close(x.square().mean(1), torch.ones_like(x[:, 0]), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(s.generator(7 * z, None, 1.5), found, atol=1e-3, rtol=1e-3)


def test_rates_are_equalised():
    """All weights start as N(0, 1), and He's constant (a quarter of it in the first layer) scales them at run time."""
    for name, layer in system(width=16).named_modules():
        if isinstance(layer, EqualConv | EqualLinear):
            assert layer.weight.std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * layer.weight.numel()))
            gain = 1 / 4 if name == "generator.dense" else 1
            assert layer.scale == pytest.approx(gain / math.sqrt(layer.weight[0].numel()))


def test_the_critic_moves_several_times_and_is_told_the_class():
    torch.manual_seed(0)
    s = ProGAN(PICTURES.conditioned_on(label_space(("a", "b"))), latent=8, width=4, growth=0.0, critics=3)
    labels, x = torch.arange(8).remainder(2).view(8, 1).float(), torch.randn(8, 3, 16, 16)
    players = [update.player for update in s.updates(Batch(BATCH.x, labels), 0.0)]
    assert players == [s.critic] * 3 + [s.generator]
    assert (s.critic(x, labels, 2.0) - s.critic(x, 1 - labels, 2.0)).abs().max() > 0.01


def test_the_critic_sees_the_variety_of_its_batch():
    x = torch.randn(4, 3, 16, 16)
    for group, differs in ((4, True), (1, False)):
        critic = system(group=group).critic
        assert torch.allclose(critic(x, None, 2.0)[:1], critic(x[:1], None, 2.0), atol=1e-5) is not differs


def test_penalties_enter_the_critics_loss():
    """The gradient's distance from 1 and the squared output, each with its weight, against autograd."""

    def loss(**options) -> tuple[float, ProGAN]:
        s = system(critics=1, growth=0.0, **options)
        torch.manual_seed(1)
        return next(s.updates(BATCH, 0.0)).loss.item(), s

    plain, s = loss(penalty=0.0, drift=0.0)
    real = s.critic(at_level(s._canvas(BATCH.x), 2.0, 2), None, 2.0)
    assert loss(penalty=0.0, drift=5.0)[0] - plain == pytest.approx(5 * real.square().mean().item(), rel=1e-3)
    assert loss(penalty=10.0, drift=0.0)[0] - plain == pytest.approx(
        10 * (loss(penalty=1.0, drift=0.0)[0] - plain), rel=0.05
    )
    assert loss(penalty=10.0, drift=0.0)[0] > plain + 0.01


def test_sides_that_cannot_be_halved_are_padded_and_cropped():
    space = Space("image", (1, 9, 17), 17)
    s = ProGAN(space, latent=4, width=4, growth=0.0)
    x = torch.randint(17, (2, 1, 9, 17))
    canvas = s._canvas(x)
    assert canvas.shape == (2, 1, 10, 18)
    torch.testing.assert_close(canvas[..., :9, 17], canvas[..., :9, 16])
    list(s.updates(Batch(x), 0.0))
    assert s.sample_encoded(2, seed=0).shape == (2, 1, 9, 17)


@pytest.mark.parametrize("bound", [0.25, 1.0, 4.0])
def test_a_bound_on_components_leaves_the_normed_codes_moments(bound):
    """Why the dial is another: mean 0 and covariance I at every bound, within five standard errors."""
    torch.manual_seed(0)
    code = pixel_norm(truncated_normal((20_000, 8), bound, torch.device("cpu")))
    assert code.mean(0).abs().max() < 5 / 20_000**0.5
    assert (code.T @ code / 20_000 - torch.eye(8)).abs().max() < 5 / 20_000**0.5


def test_truncation_draws_the_normed_code_to_its_mean_and_not_the_class():
    torch.manual_seed(0)
    s = ProGAN(PICTURES.conditioned_on(label_space(("a", "b"))), latent=8, width=4, growth=0.0)
    z, y, codes = torch.randn(6, 8), torch.tensor([[0.0], [1.0]]).repeat(3, 1), []
    s.generator.dense.register_forward_pre_hook(lambda _, inputs: codes.append(inputs[0]))
    with torch.no_grad():
        plain, half, none = (s.generator(z, y, 2.0, truncation) for truncation in (1.0, 0.5, 0.0))
        torch.testing.assert_close(plain, s.generator(z, y, 2.0), atol=0, rtol=0)
    torch.testing.assert_close(codes[1][:, :8], codes[0][:, :8] / 2)
    torch.testing.assert_close(codes[1][:, 8:], codes[0][:, 8:])
    assert not torch.allclose(half, plain)
    assert codes[2][:, :8].abs().max() == 0
    assert not torch.allclose(none[0], none[1])  # of two classes
