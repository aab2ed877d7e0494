"""The lossy VAE: its bound against the density, its window, its flow prior and its free bits."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from fivefold import slot
from fivefold.space import label_space
from fivefold.system import Batch, Space, seeded
from fivefold.vae.vlae import VLAE
from tests.test_vae import everything

SMALL = {"latent": 2, "width": 4, "depth": 1, "maps": 3}
TINY = Space("image", (1, 2, 2), levels=2)
IMAGE = Space("image", (2, 7, 9), levels=3)


def build(space: Space, window: int = 3, layers: int = 2, flow_steps: int = 2, **options) -> VLAE:
    decoder = slot("gated-pixelcnn", channels=6, layers=layers, kernel=1, first_kernel=window, dropout=0.0)
    prior = slot("autoregressive", layers=flow_steps, hidden=12)
    with seeded(0):
        system = VLAE(space, decoder=decoder, prior=prior, **{**SMALL, **options})
        with torch.no_grad():
            for parameter in system.parameters():  # away from their start, which is a special case
                parameter.add_(0.15 * torch.randn_like(parameter))
    return system.eval()


def log_prior_on(system: VLAE, reach: float = 12.0, points: int = 121) -> tuple[torch.Tensor, torch.Tensor]:
    """A grid of two-dimensional codes and ln(p(z) dz) at each."""
    line = torch.linspace(-reach, reach, points)
    z = torch.cartesian_prod(line, line)
    return z, system.log_prior(z, None).double() + 2 * np.log(2 * reach / (points - 1))


@torch.no_grad()
def test_bounds_lie_below_the_density_by_quadrature_and_tighten():
    system, x = build(TINY), everything(TINY)
    z, log_prior = log_prior_on(system)
    assert log_prior.exp().sum().item() == pytest.approx(1, abs=2e-3)  # the flow's log-determinant counts
    terms = torch.stack([system.decoder.log_prob(row.expand(len(z), *row.shape), z, None) for row in x])
    truth = (terms.double() + log_prior).logsumexp(1)
    assert truth.exp().sum().item() == pytest.approx(1, abs=2e-3)
    with seeded(1):
        elbo = system.elbo(x.repeat(500, 1, 1, 1)).view(500, -1).mean(0)
    assert (elbo < truth + 0.01).all()
    assert elbo.mean() < truth.mean() - 0.01
    system.score_samples = 2000
    score = system.score_encoded(Batch(x))
    assert ((score.log_prob - truth).abs() < 4 * score.standard_error + 5e-3).all()
    counts = np.bincount((system.sample_encoded(8000, seed=0).flatten(1) @ torch.tensor([8, 4, 2, 1])).numpy())
    expected = 8000 * truth.exp().numpy()
    assert (np.abs(counts - expected) < 4.5 * np.sqrt(expected) + 20).all()


@torch.no_grad()
def test_the_prior_is_an_autoregressive_flow():
    """Samples of z follow its density, which is no longer a standard normal; without steps it is."""
    system = build(TINY)
    z, log_prior = log_prior_on(system)
    with seeded(2):
        drawn = system.prior._sample(20000, None)
    mean = (log_prior.exp()[:, None] * z).sum(0)
    spread = ((log_prior.exp()[:, None] * z.square()).sum(0) - mean**2).sqrt()
    assert torch.allclose(drawn.mean(0).double(), mean, atol=0.05)
    assert torch.allclose(drawn.std(0).double(), spread, rtol=0.03)
    codes = torch.randn(50, 2)
    normal = Normal(0.0, 1.0).log_prob(codes).sum(1)
    assert (system.log_prior(codes, None) - normal).abs().max() > 0.1
    assert torch.allclose(build(TINY, flow_steps=0).log_prior(codes, None), normal, atol=1e-5)
    seen, true = [], system.decoder.seen
    system.decoder.seen = lambda z, condition: seen.append(z) or true(z, condition)
    with seeded(0):
        system._sample(5, None)
    with seeded(0):
        noise = torch.randn(5, 2)
    assert torch.allclose(seen[0], system.prior.flow.inverse(noise, None)[0])  # what samples are decoded from
    assert not torch.allclose(seen[0], noise, atol=0.1)
    of_maps = build(TINY, code_maps=2)
    assert of_maps.latent == 2
    assert (of_maps.log_prior(codes, None) - normal).abs().max() > 0.1


@pytest.mark.parametrize(("window", "layers"), [(3, 1), (3, 6), (5, 6)])
@torch.no_grad()
def test_a_pixel_sees_its_window_alone_whatever_the_depth(window, layers):
    system = build(IMAGE, window=window, layers=layers)
    maps, x, reach = torch.randn(1, 3, 7, 9), torch.ones(1, 2, 7, 9, dtype=torch.long), window // 2
    before = system.decoder.system.conditionals(x, maps).view(2, 7, 9, -1)
    moved = x.clone()
    moved[0, :, 3, 4] = 2
    differ = (system.decoder.system.conditionals(moved, maps).view(2, 7, 9, -1) != before).any(-1).any(0)
    sees = torch.zeros(7, 9, dtype=torch.bool)
    sees[4 : 4 + reach, 4 - reach : 5 + reach] = True  # the rows below
    sees[3, 4 : 5 + reach] = True  # the later colour of the pixel, and those to the right
    assert torch.equal(differ, sees)


@torch.no_grad()
def test_the_code_reaches_every_pixel_and_sampling_is_incremental():
    system = build(IMAGE)
    z = torch.randn(3, 2)
    maps, others = system.decoder.seen(z, None), system.decoder.seen(z + 2, None)
    x = torch.ones(3, 2, 7, 9, dtype=torch.long)
    first, second = (system.decoder.system.conditionals(x, m) for m in (maps, others))
    assert (first != second).any(-1).all()
    with seeded(0):
        noise = system.decoder.system.head.noise(3)
    fast, full = (f(noise, maps) for f in (system.decoder.system._sample_from, system.decoder.system._sample_full_from))
    assert torch.equal(fast, full)


def test_divergence_below_the_free_bits_costs_nothing():
    x, losses, gradients = torch.randint(3, (8, 2, 7, 9)), {}, {}
    for free in (0.0, 1e3):
        system = build(IMAGE, free_bits=free, dropout=0.0)
        with seeded(3):
            (update,) = system.updates(Batch(x), 0.5)
        update.loss.backward()
        losses[free], kl = update.loss.item(), update.stats["kl"].item()
        gradients[free] = max(p.grad.abs().max().item() for p in system.prior.parameters())
    assert kl > 0
    assert losses[1e3] - losses[0.0] == pytest.approx(1e3 * IMAGE.dims - kl, rel=1e-4)
    assert gradients[0.0] > 0
    assert gradients[1e3] == 0


@pytest.mark.parametrize("code_maps", [0, 2])
@pytest.mark.parametrize(
    "space",
    [
        Space("image", (1, 1, 1), levels=2),
        Space("image", (3, 5, 4), levels=256, condition=label_space((0, 1, 2))),
        Space("image", (2, 4, 4), dtype="float32"),
    ],
)
def test_every_space(space, code_maps):
    system, given = build(space, code_maps=code_maps), 1 if space.condition else None
    height, width = (-(-side // 4) for side in space.shape[1:])
    assert system.latent == (code_maps * height * width or SMALL["latent"])
    x = space.encode(system.sample(4, given, seed=0))
    condition = None if given is None else torch.ones(4, 1)
    ((nats, reconstruction),) = system.rate_distortion(x, condition)
    data = space.decode(x)
    assert nats.shape == (4,)
    assert torch.equal(space.encode(system.reconstruct(data, given)), reconstruction)
    assert len(system.interpolate(data[:1], data[1:2], 3, given)) == 3
    assert 0 <= system.monitor(Batch(x, condition))["active_units"] <= system.latent
    if given is not None:
        (update,) = system.updates(Batch(x, condition), 0.5)
        update.loss.backward()
        assert all(p.grad is not None for p in system.parameters())
        assert not torch.allclose(system.log_prob(data, 0), system.log_prob(data, 2))
    with system.turned(temperature=0.5):
        assert system.decoder.system.temperature == 0.5
