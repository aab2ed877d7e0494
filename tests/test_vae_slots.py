"""Slots of the variational autoencoders: what fills them trains, counts in the bound as it must, and is in use."""

from __future__ import annotations

import math
import os
import pickle
import signal
from functools import cache

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

import fivefold
from fivefold import Batch, Space, catalog, slot
from fivefold.data import load_data
from fivefold.errors import Stopped, Unfit
from fivefold.space import Column, label_space
from fivefold.system import System, seeded
from fivefold.tools.distributions import standard_normal_log_prob
from fivefold.training.fit import fit, resume
from fivefold.vae.vae import VAE
from tests.test_vae import TINY, everything

FLOW = {"hidden": 8}
PIXELS = slot("gated-pixelcnn", channels=6, layers=1, kernel=3)
FILLED = {
    "prior spline-flow": ("vae", {"prior": slot("spline-flow", layers=2, **FLOW)}),
    "prior maf-flow": ("vae", {"prior": slot("maf-flow", layers=2, **FLOW)}),
    "prior autoregressive": ("vae", {"prior": slot("autoregressive", **FLOW)}),
    "posterior iaf-flow": ("vae", {"posterior": slot("iaf-flow", layers=2, **FLOW)}),
    "decoder gated-pixelcnn": ("vae", {"decoder": PIXELS, "maps": 3, "score_samples": 4}),
    "all three": ("vae", {"prior": "maf-flow", "posterior": "iaf-flow", "decoder": PIXELS, "score_samples": 4}),
    "codes' prior transformer": ("vq-vae", {"prior": slot("transformer", width=8, layers=1, heads=1), "codes": 8}),
    "codes' prior made": ("vq-vae-2", {"prior": slot("made", hidden=8), "codes": 8}),
}
SMALL = {"vae": {"latent": 3, "width": 1, "depth": 1}, "vq-vae": {"width": 4}, "vq-vae-2": {"width": 4}}


def made(space: Space, name: str, options: dict, moved: float = 0.2) -> System:
    """A small system whose parameters were moved from their start; in eval mode."""
    with seeded(0):
        system = catalog.build(name, space, **SMALL[name] | options)
        with torch.no_grad():
            for parameter in system.parameters():
                parameter.add_(moved * torch.randn_like(parameter))
    return system.eval()


@cache
def images() -> fivefold.Data:
    return load_data(np.random.default_rng(0).integers(0, 4, (60, 4, 4), dtype=np.uint8))


# --- they train, resume, sample and score ---------------------------------------------------------


@pytest.mark.parametrize("case", FILLED)
def test_what_fills_a_slot_trains_and_resumes_bit_for_bit(case, tmp_path):
    name, options = FILLED[case]

    def interrupt(event):
        if event["step"] == 3 and "loss" in event:
            os.kill(os.getpid(), signal.SIGINT)

    arguments = {"budget": "8steps", "batch_size": 6, "evaluations": 1, **SMALL[name], **options}
    whole = fit(name, images(), **arguments)
    with pytest.raises(Stopped):
        fit(name, images(), out=tmp_path / "run", watch=interrupt, **arguments)
    resume(tmp_path / "run", data=images())
    loaded = fivefold.load(tmp_path / "run")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    assert torch.equal(whole.sample_encoded(3, seed=0), loaded.sample_encoded(3, seed=0))
    batch = images().test.spread(3)
    assert torch.equal(whole.score_encoded(batch).log_prob, loaded.score_encoded(batch).log_prob)
    assert whole.score_encoded(batch).log_prob.isfinite().all()


@pytest.mark.parametrize("case", FILLED)
def test_conditions_pass_through_a_filled_slot(case):
    name, options = FILLED[case]
    system = made(images().space.conditioned_on(label_space(("a", "b"))), name, options)
    x = system.sample(4, ["a", "b", "a", "b"], seed=0)
    a, b = (system.log_prob(x, label) for label in "ab")
    assert (a - b).abs().max() > 1e-6
    assert len(system.reconstruct(x, "a")) == 4
    condition = torch.tensor([[0.0], [1.0]])
    assert all(nats.isfinite().all() for nats, _ in system.rate_distortion(torch.zeros(2, 1, 4, 4).long(), condition))
    again = pickle.loads(pickle.dumps(system))
    assert torch.equal(again.sample_encoded(2, condition, seed=0), system.sample_encoded(2, condition, seed=0))


def test_a_part_has_the_learning_rate_that_is_said_of_it():
    system = made(TINY, "vae", {"lr": 0.5, "weight_decay": 0.25, "prior": "maf-flow"})
    (optimizer,) = system.optimizers().values()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    system = made(TINY, "vae", {"lr": 0.5, "prior": slot("maf-flow", lr=0.125)})
    (optimizer,) = system.optimizers().values()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.125]
    system = made(TINY, "vae", {"prior": "distilled-flow"})  # a system of systems
    (optimizer,) = system.optimizers().values()
    counted = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert counted == sum(p.numel() for p in system.parameters())


# --- the bound ------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", ["gaussian", slot("iaf-flow", layers=2, hidden=8)])
@torch.no_grad()
def test_the_bound_in_a_linear_gaussian_world(posterior):
    """x = W z + b + noise: ln p(x) is known, bounds lie below it and importance weights have it as their mean."""
    columns = tuple(Column(name) for name in "abc")
    space = Space("table", (3,), columns=columns)
    options = {"likelihood": "gaussian", "latent": 2, "depth": 0, "posterior": posterior}
    system = made(space, "vae", options)
    system.encoder.net.net[-1].weight[2:4], system.encoder.net.net[-1].bias[2:4] = 0, 0.5  # wide: weights are bounded
    last = system.decoder.net.net.net[-1]
    with seeded(1):
        weight, bias, noise = torch.randn(3, 2), torch.randn(3), torch.tensor([0.5, 0.7, 0.9])
    last.weight.zero_()
    last.weight[0::2], last.bias[0::2], last.bias[1::2] = weight, bias, noise.log()
    world = MultivariateNormal(bias.double(), (weight @ weight.T + (noise**2).diag()).double())
    x = world.sample((6,)).float()
    truth = world.log_prob(x.double())
    with seeded(2):
        elbos = system.elbo(x.repeat(500, 1)).view(500, -1).double()
    assert (elbos.mean(0) < truth + 4 * elbos.std(0) / math.sqrt(500)).all()
    assert elbos.mean() < truth.mean() - 0.01
    system.score_samples = 20_000
    score = system.score_encoded(Batch(x))
    assert ((score.log_prob - truth).abs() < 4 * score.standard_error + 1e-3).all()
    assert score.standard_error.max() < 0.1


QUADRATURE = {
    "prior": ("vae", {"prior": slot("maf-flow", layers=2, hidden=8)}),
    "posterior": ("vae", {"posterior": slot("iaf-flow", layers=2, hidden=8)}),
    "decoder": ("vae", {"decoder": PIXELS}),
}


@pytest.mark.parametrize("case", QUADRATURE)
@torch.no_grad()
def test_the_bound_by_quadrature_over_one_dimension(case):
    """Whatever fills the slot: p(x) = integral of p(z) p(x|z), to which importance weights come from below."""
    name, options = QUADRATURE[case]
    system, x = made(TINY, name, {**options, "latent": 1, "depth": 2}), everything(TINY)
    z = torch.linspace(-12, 12, 1201)[:, None]
    log_prior = system.log_prior(z, None).double() + math.log(24 / 1200)
    assert log_prior.exp().sum().item() == pytest.approx(1, abs=1e-3)
    rows = [system.decoder.log_prob(row.expand(len(z), *row.shape), z, None).double() for row in x]
    truth = torch.stack([(row + log_prior).logsumexp(0) for row in rows])
    assert truth.exp().sum().item() == pytest.approx(1, abs=1e-3)
    system.score_samples = 3000
    score = system.score_encoded(Batch(x))
    assert ((score.log_prob - truth).abs() < 4.5 * score.standard_error + 2e-3).all()
    counts = torch.bincount(system.sample_encoded(8000, seed=0).flatten(1) @ torch.tensor([9, 3, 1]), minlength=27)
    expected = 8000 * truth.exp()
    assert ((counts - expected).abs() < 5 * expected.sqrt() + 2).all()


def test_the_objective_of_several_draws():
    """`iwae` is the logarithm of the mean weight; with more draws it is tighter, with one it is the lower bound."""
    system, x = made(TINY, "vae", {"objective": "iwae", "draws": 5, "warmup": 0.0}), everything(TINY)
    with seeded(0):
        (update,) = system.updates(Batch(x), 0.5)
    with seeded(0):
        weights = system.terms(x, None, 5).log_weights
    assert weights.shape == (5, 27)
    torch.testing.assert_close(update.loss, -(weights.logsumexp(0) - math.log(5)).mean())
    update.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in system.parameters())
    losses = []
    for draws in (1, 8, 64):
        system.draws = draws
        with seeded(0):
            losses.append(np.mean([next(iter(system.updates(Batch(x), 0.5))).loss.item() for _ in range(20)]))
    assert losses == sorted(losses, reverse=True)
    with seeded(0):
        terms = system.terms(x, None, 4000)
    error = 4 * (terms.log_weights.std(0) / math.sqrt(4000))
    assert ((terms.log_weights.mean(0) - terms.elbo).abs() < error + 1e-4).all()  # the closed form is the draws' mean


def test_free_bits_cost_nothing_wherever_they_are_asked_for():
    assert made(TINY, "vae", {"decoder": PIXELS}).free_bits > 0  # a decoder that could do without z
    losses = {}
    for free in (0.0, 100.0):
        system = made(TINY, "vae", {"free_bits": free, "dropout": 0.0})
        with seeded(0):
            (update,) = system.updates(Batch(everything(TINY)), 0.5)
        losses[free], kl = update.loss.item(), update.stats["kl"].item()
    assert losses[100.0] - losses[0.0] == pytest.approx(100.0 * TINY.dims - kl, rel=1e-4)


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "part", "fits"),
    [
        ("prior", "dcgan", "standard-normal, autoregressive.*spline-flow"),
        ("prior", "ddpm", "maf-flow"),
        ("posterior", "made", "gaussian.*iaf-flow"),
        ("decoder", "glow", "network.*gated-pixelcnn"),
        ("decoder", "vae", "transformer"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(option, part, fits):
    with pytest.raises(Unfit, match=f"{part} cannot be the {option} of VAE.*These fit: .*{fits}"):
        VAE(TINY, **{option: part})


# --- in use, from the default start ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["spline-flow", "maf-flow"])
def test_a_flow_prior_leaves_the_standard_normal(prior):
    data = load_data("digits")
    system = fit("vae", data, prior=prior, budget="500steps", evaluations=2)
    test = data.test.batch(slice(None))
    with system.evaluating():
        q = system.encoded(*test)
        z = q.mean + q.log_scale.exp() * torch.randn_like(q.mean)
        gain = system.log_prior(z, None) - standard_normal_log_prob(z)
    assert gain.mean() > 0.5  # nats
    assert system.monitor(test)["kl"] > 1
    assert system.monitor(test)["active_units"] >= 4


@pytest.mark.slow
def test_a_flow_posterior_is_not_the_identity_and_sees_the_example():
    data = load_data("digits")
    system = fit("vae", data, posterior="iaf-flow", budget="800steps", evaluations=2)
    test = data.test.batch(slice(None))
    with system.evaluating():
        features = system.encoded(*test).features
        with seeded(0):
            u, log_q = system.posterior.draw(len(features), features)
        with seeded(0):
            of_others, _ = system.posterior.draw(len(features), features.roll(1, 0))
        with seeded(0):
            noise = torch.randn_like(u)
    assert (log_q - standard_normal_log_prob(u)).std() > 0.1
    assert (u - noise).abs().mean() > 0.02
    assert (u - of_others).abs().mean() > 0.01
    assert system.monitor(test)["active_units"] >= 4


@pytest.mark.slow
def test_an_autoregressive_decoder_does_not_do_without_the_code():
    data = load_data("digits")
    system = fit("vae", data, decoder="gated-pixelcnn", budget="400steps", evaluations=2)
    test = data.test.batch(slice(None))
    assert system.monitor(test)["kl"] > 1
    with system.evaluating():
        z = system._encode(*test)
        own, others = (system.decoder.log_prob(test.x, code, None).mean() for code in (z, z.roll(1, 0)))
    assert own - others > 1  # nats
