"""The variational autoencoder's bounds, likelihoods and samples against quadrature over its latent code."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Normal, kl_divergence

from fivefold.errors import Unfit
from fivefold.space import Column, label_space
from fivefold.system import Batch, Space, seeded
from fivefold.vae import _bound
from fivefold.vae._bound import kl_to_standard_normal
from fivefold.vae.vae import VAE

LABEL = label_space((0, 1, 2))
MIXED = Space(
    "table",
    (4,),
    columns=(
        Column("a", scale=3.0),
        Column("b", "integer", levels=5),
        Column("c", "categorical", "object", levels=3, categories=tuple("xyz")),
        Column("d", "categorical", "bool", levels=2, categories=(False, True)),
    ),
)
TINY = Space("image", (1, 1, 3), levels=3)


def wild(system: nn.Module, seed: int = 0) -> nn.Module:
    """The system with random parameters, so that nothing is at its start; in eval mode.

    The posteriors stay near the prior, so that importance weights have a variance.
    """
    with seeded(seed):
        for name, parameter in system.named_parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 16
            nn.init.normal_(parameter, std=(0.7 if name.startswith("encoder") else 2.0) / math.sqrt(fan_in))
    return system.eval()


def everything(space: Space) -> torch.Tensor:
    """All encoded examples of a small discrete space."""
    return torch.tensor(list(itertools.product(range(space.levels), repeat=space.dims))).view(-1, *space.shape)


def exact(system: VAE, x: torch.Tensor) -> torch.Tensor:
    """ln p(x) `(B,)` in float64, by quadrature over a latent code of one or two dimensions."""
    line = torch.linspace(-7, 7, 281 if system.latent == 1 else 71, dtype=torch.float64)
    z = torch.cartesian_prod(*[line] * system.latent).view(-1, system.latent)
    log_prior = Normal(0.0, 1.0).log_prob(z).sum(1) + system.latent * math.log(line[1] - line[0])
    log_likelihood = torch.stack(
        [system.decoder.log_prob(row.expand(len(z), *row.shape), z.float(), None) for row in x]
    )
    return (log_likelihood.double() + log_prior).logsumexp(1)


CASES = [
    (TINY, {"latent": 1, "network": "mlp"}),
    (TINY, {"latent": 2, "network": "conv", "likelihood": "logistic-mixture"}),
    (Space("image", (1, 2, 2), levels=2), {"latent": 1, "likelihood": "bernoulli"}),
    (Space("text", (2,), levels=4, symbols="abcd"), {"latent": 2}),
]


@pytest.mark.parametrize(("space", "options"), CASES)
@torch.no_grad()
def test_bounds_lie_below_the_exact_density_and_tighten(space, options):
    system, x = wild(VAE(space, width=1, depth=1, **options)), everything(space)
    truth = exact(system, x)
    assert truth.exp().sum().item() == pytest.approx(1, abs=1e-4)  # the likelihood is normalised, the quadrature right
    means = []
    for k in (1, 8, 64):
        system.score_samples = k
        means.append(torch.stack([system.score_encoded(Batch(x), seed=s).log_prob for s in range(30)]).mean(0))
    with seeded(1):
        elbo = system.elbo(x.repeat(200, *[1] * (x.dim() - 1))).view(200, -1)
    assert abs((elbo.mean(0) - means[0]).mean()) < 4 * elbo.std() / math.sqrt(30 * len(x))
    assert means[0].mean() < means[1].mean() < truth.mean()
    assert means[1].mean() < means[2].mean() < truth.mean() + 5e-3
    assert means[0].exp().sum() < 0.99
    system.score_samples, truth = 5000, truth[::3]
    score = system.score_encoded(Batch(x[::3]))
    assert ((score.log_prob - truth).abs() <= 4 * score.standard_error + 2e-3).all()
    assert (
        (score.log_prob - truth) / score.standard_error
    ).square().mean() < 2.5  # so the errors are of the right size


@torch.no_grad()
def test_elbo_is_the_mean_of_the_log_weights_over_the_posterior():
    system, x = wild(VAE(TINY, width=1, latent=1, network="mlp")), everything(TINY)[:9]
    system.encoder.net.net[-1].weight *= 5  # away from the prior, so that the divergence counts
    mean, log_scale = (t.double() for t in system.encoded(x, None)[:2])
    q = Normal(mean, log_scale.exp())
    assert kl_divergence(q, Normal(0.0, 1.0)).mean() > 0.2
    z = mean + log_scale.exp() * torch.linspace(-8, 8, 801, dtype=torch.float64)  # (B, 801)
    weight = q.log_prob(z).exp() * log_scale.exp() * 16 / 800
    likelihood = torch.stack([system.decoder.log_prob(x, column[:, None].float(), None) for column in z.T], 1)
    truth = (weight * (likelihood.double() + Normal(0.0, 1.0).log_prob(z) - q.log_prob(z))).sum(1)
    with seeded(0):
        draws = system.elbo(x.repeat(4000, 1, 1, 1)).view(4000, -1).double()
    assert ((draws.mean(0) - truth).abs() < 4 * draws.std(0) / math.sqrt(4000) + 1e-4).all()


def test_divergence_is_that_of_the_gaussians():
    mean, log_scale = torch.randn(5, 3), torch.randn(5, 3)
    expected = kl_divergence(Normal(mean, log_scale.exp()), Normal(0.0, 1.0))
    assert torch.allclose(kl_to_standard_normal(mean, log_scale), expected, atol=1e-5)


@torch.no_grad()
def test_samples_follow_the_density():
    system = wild(VAE(Space("image", (1, 1, 2), levels=3), width=1, latent=1))
    x = everything(system.space)
    expected = exact(system, x).exp().numpy()
    drawn = system.sample_encoded(20000, seed=0).flatten(1)
    counts = np.bincount((drawn @ torch.tensor([3, 1])).numpy(), minlength=9)
    assert stats.chisquare(counts, expected / expected.sum() * 20000).pvalue > 1e-3


SPACES = [
    (Space("image", (1, 1, 1), levels=2), {}, "MLPDecoder"),
    (Space("image", (1, 8, 8), levels=17), {"network": "conv", "likelihood": "logistic-mixture"}, "ConvDecoder"),
    (Space("image", (3, 5, 9), levels=256), {"network": "conv"}, "ConvDecoder"),
    (
        Space("image", (3, 5, 4), scale=2.0, dtype="float32"),
        {"network": "conv", "likelihood": "gaussian"},
        "ConvDecoder",
    ),
    (Space("image", (1, 16, 17), levels=4), {}, "ConvDecoder"),
    (Space("image", (2, 28, 3), levels=4, condition=LABEL), {"network": "conv"}, "ConvDecoder"),
    (Space("image", (1, 8, 8), levels=2), {}, "MLPDecoder"),
    (MIXED, {}, "MLPDecoder"),
    (MIXED, {"likelihood": "gaussian"}, "MLPDecoder"),
    (MIXED.conditioned_on(LABEL), {}, "MLPDecoder"),
    (Space("text", (6,), levels=4, symbols="abcd"), {}, "MLPDecoder"),
    (Space("audio", (20,), levels=65536, rate=8000), {}, "MLPDecoder"),
]


@pytest.mark.parametrize(("space", "options", "decoder"), SPACES)
def test_every_space(space, options, decoder):
    condition = 1 if space.condition else None
    system = VAE(space, width=1, **options)
    assert type(system.decoder.net).__name__ == decoder
    wild(system)
    x = space.encode(system.sample(4, condition, seed=0))
    assert x.shape == (4, *space.shape)
    encoded = None if condition is None else torch.ones(4, 1)
    (update,) = system.updates(Batch(x, encoded), 0.5)
    update.loss.backward()
    assert all(p.grad is not None for p in system.parameters())
    data = space.decode(x)
    assert torch.equal(system.log_prob(data, condition), system.log_prob(data, condition))
    assert space.encode(system.reconstruct(data, condition)).shape == x.shape
    one = data[:1]
    assert len(system.interpolate(one, data[1:2], 5, condition)) == 5
    if condition is not None:
        assert (system.log_prob(data, 0) - system.log_prob(data, 2)).abs().max() > 1e-3
    assert set(system.monitor(Batch(x, encoded))) >= {"elbo", "kl", "active_units"}


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [(MIXED, {"network": "conv"}, "needs images"), (TINY, {"likelihood": "gaussian"}, "real values")],
)
def test_refusals(space, options, message):
    with pytest.raises(Unfit, match=message):
        VAE(space, **options)


def test_warm_up_weighs_the_divergence_by_progress():
    system, x = wild(VAE(TINY, width=1, warmup=0.5, dropout=0.0)), everything(TINY)

    def loss(progress):
        with seeded(0):
            (update,) = system.updates(Batch(x), progress)
        return update.loss.item(), update.stats["kl"].item()

    (start, kl), (quarter, _), (end, _) = loss(0.0), loss(0.25), loss(0.5)
    assert quarter - start == pytest.approx(kl / 2, rel=1e-4)
    assert end - start == pytest.approx(kl, rel=1e-4)
    assert loss(1.0)[0] == end


def test_scoring_in_parts_keeps_memory_bounded_and_the_encoder_to_one_pass(monkeypatch):
    system, x, rows, encoded = wild(VAE(TINY, width=1, latent=1)), everything(TINY), [], []
    whole = system.score_encoded(Batch(x))
    monkeypatch.setattr(_bound, "MOST_NUMBERS", 10 * len(x) * TINY.dims * system.decoder.head.width)
    system.decoder.net.register_forward_hook(lambda _, z, out: rows.append(len(out)))
    system.encoder.register_forward_hook(lambda _, z, out: encoded.append(len(out)))
    parts = system.score_encoded(Batch(x))
    assert encoded == [len(x)]
    assert rows == [10 * len(x)] * 6 + [4 * len(x)]
    assert ((whole.log_prob - parts.log_prob).abs() < 5 * (whole.standard_error + parts.standard_error) + 1e-6).all()


@torch.no_grad()
def test_monitor_counts_units_whose_mean_varies():
    system = wild(VAE(TINY, width=1, latent=4, network="mlp"))
    last = system.encoder.net.net[-1]
    last.weight[[1, 2, 3]] = 0  # of the four means only the first depends on x
    last.weight[0] *= 10
    assert system.monitor(Batch(everything(TINY)))["active_units"] == 1
