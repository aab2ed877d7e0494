"""VQ-VAE-2: the bound against enumeration over both levels of codes; what each level knows of the other."""

import itertools

import pytest
import torch

from fivefold.errors import Unfit
from fivefold.space import label_space
from fivefold.system import Batch, Space
from fivefold.vae.vae import VAE
from fivefold.vae.vq_vae_2 import VQVAE2
from tests.test_vae import TINY as ROW
from tests.test_vae import everything, wild
from tests.test_vq_vae import assert_sampled_as, step

SMALL = {"prior": "made", "width": 4, "codes": 3, "code_width": 2, "depth": 1}
TINY = Space("image", (1, 2, 2), levels=2)
GRID = Space("image", (1, 8, 8), levels=3)
LABELLED = Space("image", (2, 5, 6), levels=4, condition=label_space((0, 1, 2)))


def build(space: Space, **options) -> VQVAE2:
    system = wild(VQVAE2(space, **{**SMALL, **options}))
    for book in system.autoencoder.books.values():
        book.initialised.fill_(True)
    return system


@torch.no_grad()
def test_the_bound_is_one_term_of_the_sum_over_both_levels():
    system, x = build(TINY, halvings=0), everything(TINY)
    (upper, lower), width = system.autoencoder.grids, SMALL["codes"]
    assert (upper, lower) == ((1, 1), (2, 2))
    tops = torch.arange(width).view(-1, 1, 1, 1)
    bottoms = torch.tensor(list(itertools.product(range(width), repeat=4))).view(-1, 1, 2, 2)
    pairs = [(t.expand(len(bottoms), 1, 1, 1), bottoms) for t in tops]
    log_priors = [torch.stack(system._log_priors(pair, None)).sum(0) for pair in pairs]
    assert torch.cat(log_priors).exp().sum().item() == pytest.approx(1, abs=1e-5)
    terms = []
    for (top, bottom), log_prior in zip(pairs, log_priors, strict=True):
        vectors = system._vectors(top, bottom)
        for i in range(len(bottom)):
            repeated = [v[i].expand(len(x), -1, -1, -1) for v in vectors]
            terms.append(log_prior[i] + system.autoencoder.log_likelihood(x, *repeated))
    exact, bound = torch.stack(terms).logsumexp(0), system.score_encoded(Batch(x)).log_prob
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-4)
    assert_sampled_as(system, x, exact)
    assert (bound < exact).all()
    assert all(torch.isclose(b.float(), torch.stack(terms)[:, i], atol=1e-4).any() for i, b in enumerate(bound))


@torch.no_grad()
def test_the_lower_level_is_conditioned_on_the_upper():
    """Its encoder, its prior and the decoder see the upper codes."""
    system = build(GRID, prior="gated-pixelcnn", halvings=1)
    assert system.autoencoder.grids == ((2, 2), (4, 4))
    x = torch.randint(3, (6, 1, 8, 8))
    upper, lower = system._codes(x)
    other = (upper + 1) % 3
    given, swapped = (system._log_priors([top, lower], None)[1] for top in (upper, other))
    assert not torch.allclose(given, swapped)
    both = system.autoencoder.decode(*system._vectors(upper, lower))
    for codes in ((other, lower), (upper, (lower + 1) % 3)):
        assert not torch.allclose(both, system.autoencoder.decode(*system._vectors(*codes)))

    def lower_features(shift: float) -> torch.Tensor:
        seen = {}

        def quantise(name, features):
            seen[name] = features
            return features + shift * (name == "upper")

        system.autoencoder.encode(x, quantise)
        return seen["lower"]

    assert not torch.allclose(lower_features(0.0), lower_features(1.0))


def test_stages_train_apart():
    system, batch = VQVAE2(TINY, **SMALL), Batch(everything(TINY))
    assert step(system, [batch], 0.0) == [system.autoencoder]
    books = [book.vectors.clone() for book in system.autoencoder.books.values()]
    assert step(system, [batch], 0.3) == [system.autoencoder]
    assert all(not torch.equal(a, b.vectors) for a, b in zip(books, system.autoencoder.books.values(), strict=True))
    books = [book.vectors.clone() for book in system.autoencoder.books.values()]
    assert step(system, [batch], 0.4) == list(system.priors)
    assert all(torch.equal(a, b.vectors) for a, b in zip(books, system.autoencoder.books.values(), strict=True))
    assert set(system.optimizers()) == {system.autoencoder, *system.priors}


def test_commitment_and_straight_through_reach_both_encoders():
    system, batch = build(GRID), Batch(torch.randint(3, (6, 1, 8, 8)))
    gradients, distances = {}, []

    def quantise(name, features):
        vectors = system.autoencoder.book(name)(system.autoencoder.book(name).nearest(features))
        distances.append((features - vectors).square().flatten(1).sum(1).mean())
        return vectors

    system.autoencoder.encode(batch.x, quantise)
    assert torch.allclose(next(system.updates(batch, 0.0)).stats["distance"], sum(distances))  # of both levels
    for commitment in (0.0, 1.0):
        system.commitment = commitment
        system.zero_grad()
        next(system.updates(batch, 0.0)).loss.backward()
        for part in ("bottom", "top"):
            parameters = getattr(system.autoencoder, part).parameters()
            gradients[part, commitment] = torch.cat([p.grad.flatten() for p in parameters])
    for part in ("bottom", "top"):
        assert gradients[part, 0.0].abs().max() > 1e-5
        assert not torch.allclose(gradients[part, 0.0], gradients[part, 1.0])


@pytest.mark.parametrize(("prior", "space"), [("made", LABELLED), ("gated-pixelcnn", LABELLED), ("made", ROW)])
def test_samples_reconstructions_and_levels(prior, space):
    system, condition = build(space, prior=prior), None if space.condition is None else torch.ones(4, 1)
    given = None if condition is None else 1
    x = space.encode(system.sample(4, given, seed=0))
    for progress in (0.0, 0.9):
        step(system, [Batch(x, condition)], progress)
    upper, lower = system.rate_distortion(x, condition)
    total = system.score_encoded(Batch(x, condition)).log_prob - space.log_det(x)
    codes = [v.float() for v in system._vectors(*system._codes(x))]
    assert torch.allclose(system.autoencoder.log_likelihood(x, *codes) - upper[0] - lower[0], total.float(), atol=1e-3)
    data = space.decode(x)
    assert torch.equal(space.encode(system.reconstruct(data, given)), lower[1])
    assert len(system.interpolate(data[:1], data[1:2], 3, given)) == 3
    assert 0 < system.monitor(Batch(x, condition))["upper_codes_used"] <= 1
    if given is not None:
        first, second = (system._log_priors(system._codes(x), torch.full((4, 1), float(c))) for c in (0, 2))
        assert all(not torch.allclose(a, b) for a, b in zip(first, second, strict=True))  # both levels know the label


def test_temperature_is_both_priors():
    system = build(TINY)
    with system.turned(temperature=0.5):
        assert [prior.temperature for prior in system.priors] == [0.5, 0.5]
    assert system.temperature == 1
    with pytest.raises(Unfit, match="made"):
        VQVAE2(TINY, prior="vae")


@torch.no_grad()
def test_rate_and_distortion_of_a_single_level():
    system, x = wild(VAE(ROW, width=1, latent=2)), everything(ROW)
    ((nats, reconstruction),) = system.rate_distortion(x)
    assert nats.mean().item() == pytest.approx(system.monitor(Batch(x))["kl"], rel=1e-4)
    assert torch.equal(reconstruction, system._decode(system._encode(x, None), None))
