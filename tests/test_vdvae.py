"""The very deep VAE: its likelihood, bound and samples against enumeration; what its depth rests on."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from fivefold.data import load_data
from fivefold.nets.colours import ColourMixture
from fivefold.space import label_space
from fivefold.system import Batch, Space, seeded
from fivefold.training.fit import fit
from fivefold.vae import _ladder
from fivefold.vae._ladder import Gaussian, gaussian_kl
from fivefold.vae.vdvae import VDVAE, _TopDown
from tests.systems import Regression, follow
from tests.test_vae import everything

SMALL = {"width": 8, "latent": 2, "blocks": 1, "mixtures": 2}
TINY = Space("image", (2, 1, 2), levels=2)
EIGHT = Space("image", (1, 8, 8), levels=4)


def build(space: Space, **options) -> VDVAE:
    with seeded(0):
        system = VDVAE(space, **{**SMALL, **options})
        with torch.no_grad():
            for parameter in system.parameters():  # away from their start, which is a special case
                parameter.add_(0.2 * torch.randn_like(parameter))
    return system.eval()


def mixture(space: Space) -> tuple[ColourMixture, torch.Tensor]:
    head = ColourMixture(space, 3)
    with seeded(1):
        return head, torch.randn(1, head.width, *space.shape[1:])


def codes(x: torch.Tensor, levels: int) -> np.ndarray:
    """The number of each example in `everything`."""
    return (x.flatten(1) @ levels ** torch.arange(x[0].numel()).flip(0)).numpy()


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (0.2, 0.5), (0.4, 1.0), (1.0, 1.0)])
def test_the_divergence_is_warmed_up(progress, weight):
    system = build(EIGHT, warmup=0.4)
    x = torch.randint(4, (5, *EIGHT.shape))
    with seeded(2):
        terms = system.terms(x, None)
    with seeded(2):
        (update,) = system.updates(Batch(x), progress)
    expected = (weight * terms.divergence[:, 0].sum(0) - terms.log_likelihood[0]).mean() / EIGHT.dims
    torch.testing.assert_close(update.loss, expected)


# --- the likelihood -------------------------------------------------------------------------------


@pytest.mark.parametrize("colours", [1, 3])
def test_colours_sum_to_one_and_are_sampled_as_they_are_scored(colours):
    space = Space("image", (colours, 1, 1), levels=3)
    head, maps = mixture(space)
    x = everything(space)
    mass = head.log_prob(maps.expand(len(x), -1, -1, -1), x).double().exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-5)
    drawn = head.sample(maps.expand(20000, -1, -1, -1))
    counts = np.bincount(codes(drawn, 3), minlength=len(x))
    assert follow(counts, 20000 * mass.numpy())


def test_a_colour_moves_with_those_before_it():
    """Within one component: a mixture of products alone could not."""
    head, maps = ColourMixture(Space("image", (2, 1, 1), levels=5), 1), torch.zeros(1, 6, 1, 1)
    maps[:, 5] = 1.0
    table = head.log_prob(maps.expand(25, -1, -1, -1), everything(head.space)).view(5, 5)
    given_first = table.log_softmax(1)
    assert (given_first[4] - given_first[0]).abs().max() > 0.1
    maps[:, 5] = 0.0
    table = head.log_prob(maps.expand(25, -1, -1, -1), everything(head.space)).view(5, 5).log_softmax(1)
    assert torch.allclose(table[4], table[0], atol=1e-5)


def test_real_colours_integrate_to_one():
    head, maps = mixture(Space("image", (2, 1, 1), dtype="float32"))
    line = torch.linspace(-30, 30, 601)
    x = torch.cartesian_prod(line, line).view(-1, 2, 1, 1)
    total = head.log_prob(maps.expand(len(x), -1, -1, -1), x).double().exp().sum() * 0.1**2
    assert total.item() == pytest.approx(1, abs=0.01)
    assert ColourMixture(Space("image", (3, 4, 4), levels=256), 10).width == 100  # as published


# --- the bound ------------------------------------------------------------------------------------


def test_divergence_is_that_of_the_gaussians():
    a, b, c, d = torch.randn(4, 50)
    expected = kl_divergence(Normal(a, b.exp()), Normal(c, d.exp()))
    assert torch.allclose(gaussian_kl(Gaussian(a, b), Gaussian(c, d)), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_each_divergence_is_of_the_posterior_on_its_grid_from_the_prior(monkeypatch):
    system, seen, given, made, found = build(EIGHT), [], [], [], []
    monkeypatch.setattr(_ladder, "gaussian_kl", lambda *laws: seen.append(laws) or gaussian_kl(*laws))
    for block in system.rungs:
        block.posterior.register_forward_hook(lambda module, inputs, y: given.append(inputs[0]) or made.append(y))
    system.encoder.register_forward_hook(lambda module, inputs, y: found.extend(reversed(y)))
    _ = system.terms(torch.randint(4, (3, 1, 8, 8)), None).divergence
    assert len(seen) == len(system.rungs) == 3
    for level, features, (law, _), posterior in zip(system.levels, given, seen, made, strict=True):
        assert torch.equal(features[:, 8:], found[level])  # beside the stream
        assert torch.equal(torch.cat([law.mean, law.log_scale], 1), posterior)


@torch.no_grad()
def test_importance_weights_have_the_mean_of_the_density_and_their_logarithm_the_bounds():
    system, x = build(TINY), everything(TINY)
    system.score_samples = 1
    with seeded(0):
        rows = x.repeat(2000, 1, 1, 1)
        ones = system._log_prob(rows, None)[0].view(2000, -1)
        elbos = system.elbo(rows).view(2000, -1)
    error = (ones.var(0) / 2000 + elbos.var(0) / 2000).sqrt()
    assert ((ones.mean(0) - elbos.mean(0)).abs() < 4 * error + 1e-4).all()
    assert elbos.mean(0).exp().sum() < 0.99
    system.score_samples = 2000
    score = system.score_encoded(Batch(x))
    total, error = score.log_prob.exp().sum(), (score.log_prob.exp() * score.standard_error).square().sum().sqrt()
    assert abs(total - 1) < 4 * error + 1e-3
    assert error < 0.05
    assert (score.log_prob.mean() > elbos.mean(0).mean()).item()
    counts = np.bincount(codes(system.sample_encoded(20000, seed=0), 2), minlength=16)
    expected = (score.log_prob.exp() / total).numpy()
    spread = np.sqrt(20000 * expected + (20000 * expected * score.standard_error.numpy()) ** 2)
    assert (np.abs(counts - 20000 * expected) < 4.5 * spread + 1).all()


# --- what its depth rests on ----------------------------------------------------------------------


def test_what_ends_a_block_shrinks_with_depth():
    few, many = (VDVAE(EIGHT, width=32, blocks=n) for n in (1, 46))  # 3 and 48 in all
    for layer in (lambda s: s.rungs[-1].project, lambda s: s.rungs[-1].residual.layers[-1],
                  lambda s: s.encoder.blocks[0].layers[-1]):  # fmt: skip
        assert (layer(few).weight.std() / layer(many).weight.std()).item() == pytest.approx(4, rel=0.2)
    assert many.rungs[0].prior.layers[-1].weight.abs().max() == 0


def test_grids_are_enlarged_by_repetition():
    system = VDVAE(EIGHT, **SMALL)
    assert system.grids == [(1, 1), (4, 4), (8, 8)]
    h = torch.randn(1, 8, 4, 4)
    repeated = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(system.enlarge(h, 2, None), repeated)
    system.starts[2].data.normal_()  # what is learnt of each position, 0 at first
    assert torch.equal(system.enlarge(h, 2, None), repeated + system.starts[2])


@torch.no_grad()
def test_a_block_draws_its_code_from_the_stream_and_adds_it():
    """The prior sees the stream and adds to it; the posterior sees it beside the encoder's features."""
    torch.manual_seed(0)
    block, h, found, z = _TopDown(8, 4, 2, True, 3), *torch.randn(2, 2, 8, 5, 5), torch.randn(2, 2, 5, 5)
    torch.nn.init.normal_(block.prior.layers[-1].weight)
    mean, log_scale, more = block.prior(h).split([2, 2, 8], 1)
    prior, onward = block.prior_of(h)
    for ours, expected in zip((prior.mean, prior.log_scale, onward), (mean, log_scale, h + more), strict=True):
        assert torch.equal(ours, expected)
    both = block.posterior(torch.cat([h, found], 1)).chunk(2, 1)
    law = block.posterior_of(h, found, prior)
    assert torch.equal(law.mean, both[0])
    assert torch.equal(law.log_scale, both[1])
    stream = h + block.project(z)
    assert torch.equal(block.merge(h, z), stream + block.residual(stream))


@torch.no_grad()
def test_every_grid_is_encoded_and_every_code_enters():
    system, x = build(EIGHT), everything(Space("image", (1, 1, 1), levels=4))
    images = x[:2].expand(2, 1, 8, 8).clone()
    levels = system.rate_distortion(images)
    with seeded(0):
        kls = system.terms(images, None).divergence[:, 0]
    assert torch.allclose(torch.stack([nats for nats, _ in levels]), kls)  # a block on each grid
    assert (kls > 1e-3).all()
    z = system._encode(images, None)
    assert z.shape == (2, 2 * (1 + 16 + 64))
    assert torch.equal(system._decode(z, None), levels[-1][1])
    for first, length in ((0, 2), (2, 32), (34, 128)):
        moved = z.clone()
        moved[:, first : first + length] += 5
        maps = [system.descend(2, None, _given(system, code)) for code in (z, moved)]
        assert not torch.allclose(*maps)


def _given(system, z):
    parts = z.split([2 * h * w for h, w in system.grids], 1)
    return lambda number, h, prior: parts[number].view_as(prior.mean)


def test_counts_of_blocks():
    system = VDVAE(EIGHT, **{**SMALL, "encoder_blocks": "3,2,1", "decoder_blocks": "1,2,4"})
    assert (system.levels, len(system.encoder.blocks)) == ([0, 1, 1, 2, 2, 2, 2], 6)
    system = VDVAE(EIGHT, **{**SMALL, "blocks": 3})
    assert (system.levels, len(system.encoder.blocks)) == ([0, 1, 1, 1, 2], 5)
    for wrong in ("1,2", "1,0,2"):
        with pytest.raises(ValueError, match="decoder_blocks needs 3 counts"):
            VDVAE(EIGHT, decoder_blocks=wrong)


@torch.no_grad()
def test_temperature_turns_the_priors_alone():
    system = build(EIGHT)
    seen = {}
    for temperature in (0.5, 1.0):
        block, drawn = system.rungs[0], []
        hook = block.project.register_forward_pre_hook(lambda _, z, drawn=drawn: drawn.append(z[0]))
        system.sample(4000, seed=0, temperature=temperature)
        seen[temperature] = drawn[0]
        hook.remove()
    h = system.enlarge(torch.zeros(1, 8, 1, 1), 0, None)
    prior, _ = system.rungs[0].prior_of(h)
    for temperature, z in seen.items():
        assert torch.allclose(z.mean(0), prior.mean[0], atol=0.1 * prior.log_scale.exp().max())
        assert torch.allclose(z.std(0), temperature * prior.log_scale[0].exp(), rtol=0.06)
    assert system.temperature == 1


def test_a_label_reaches_encoder_and_every_grid():
    space = EIGHT.conditioned_on(label_space((0, 1, 2)))
    system = build(space)
    x = torch.randint(4, (3, 1, 8, 8))
    (update,) = system.updates(Batch(x, torch.ones(3, 1)), 0.5)
    update.loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in system.context.parameters())


# --- steps that are left out ----------------------------------------------------------------------


def test_steps_with_a_large_gradient_are_left_out():
    data = load_data(np.random.default_rng(0).normal(size=(60, 3)))
    weights = {}
    for skip in (0.0, 1e-9, 1e9):
        events = []
        trained = fit(Regression, data, budget="5steps", evaluations=1, skip=skip, watch=events.append)
        weights[skip] = trained.net.weight
        skipped = [e["stats"].get("skipped_steps") for e in events if "stats" in e]
        assert skipped[-1] == {0.0: None, 1e-9: 5, 1e9: 0}[skip]
    assert torch.equal(weights[0.0], weights[1e9])
    torch.manual_seed(0)
    assert not torch.equal(weights[0.0], weights[1e-9])
    assert VDVAE.presets["default"]["skip"] > 0


def test_a_step_left_out_moves_neither_weights_nor_moments():
    data = load_data(np.random.default_rng(0).integers(0, 4, (40, 8, 8), dtype=np.uint8))
    options = {**SMALL, "budget": "3steps", "evaluations": 1, "ema": 0.0}
    kept, again = (fit("vdvae", data, skip=1e-9, seed=1, **options) for _ in range(2))
    trained = fit("vdvae", data, seed=1, **options)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), again.parameters(), strict=True))
    assert kept.last.weight.abs().max() == 0  # as it starts
    assert trained.last.weight.abs().max() > 0


class Disguised:
    """A Gaussian that does not say that it is one, as a flow would not."""

    def __init__(self, law: Gaussian) -> None:
        self.law, self.mean = law, law.mean

    def draw(self):
        return self.law.draw()

    def log_prob(self, z):
        return self.law.log_prob(z)


@torch.no_grad()
def test_a_posterior_without_a_closed_form_costs_what_its_draws_say(monkeypatch):
    system, x = build(TINY), everything(TINY)
    with seeded(0):
        closed = system.terms(x, None, 3000)
    for rung in system.rungs:
        gaussian = rung.posterior_of
        monkeypatch.setattr(rung, "posterior_of", lambda h, found, prior, of=gaussian: Disguised(of(h, found, prior)))
    with seeded(0):
        drawn = system.terms(x, None, 3000)
    assert torch.equal(closed.log_weights, drawn.log_weights)
    assert torch.allclose(drawn.rate, -drawn.log_ratio.mean(0), atol=1e-4)
    assert torch.allclose(closed.log_prior - closed.log_posterior, closed.log_ratio, atol=1e-3)
    error = 4 * drawn.log_ratio.std(0) / 3000**0.5
    assert ((closed.rate - drawn.rate).abs() < error + 1e-3).all()
    assert not torch.equal(closed.rate, drawn.rate)
