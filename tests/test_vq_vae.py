"""Vector quantisation by hand, and the bound of the VQ-VAE against enumeration over all codes."""

import itertools

import pytest
import torch

from fivefold.errors import Unfit
from fivefold.nets.codebook import Codebook, straight_through
from fivefold.system import Batch, Space, seeded
from fivefold.vae.vq_vae import VQVAE
from tests.test_vae import LABEL, MIXED, everything, wild

SMALL = {"prior": "made", "width": 8, "codes": 3, "code_width": 2, "depth": 1}
TINY = Space("image", (1, 2, 2), levels=2)


def step(system, batches, progress):
    """One iteration of micro-batches in lockstep as the trainer advances them, without optimisers; the players."""
    streams, reply, players = [system.updates(batch, progress) for batch in batches], None, []
    while True:
        updates = []
        for i, stream in enumerate(streams):
            try:
                updates.append(stream.send(reply if i == 0 else None))
            except StopIteration:
                continue
        if not updates:
            return players
        players.append(updates[0].player)
        reply = {name: sum(u.stats[name].detach() for u in updates) for name in updates[0].stats}


# --- the codebook ---------------------------------------------------------------------------------


def test_codes_are_the_nearest_vectors():
    book, features = Codebook(7, 3), torch.randn(5, 2, 3)
    assert torch.equal(book.nearest(features), (features.unsqueeze(-2) - book.vectors).square().sum(-1).argmin(-1))
    assert torch.equal(book(torch.tensor([[2], [0]])), book.vectors[[2, 0]].unsqueeze(1))


def test_straight_through_has_the_value_of_the_code_and_the_gradient_of_the_feature():
    features, vectors = torch.randn(4, requires_grad=True), torch.randn(4)
    out = straight_through(features, vectors)
    out.square().sum().backward()
    assert torch.allclose(out, vectors)
    assert torch.allclose(features.grad, 2 * vectors)


def test_codebook_is_the_running_mean_of_its_features():
    book = Codebook(2, 1, decay=0.9, revive=0.0)
    book.initialised.fill_(True)
    count, total = [2.0, 3.0], [4.0, -3.0]
    book.counts, book.sums = torch.tensor(count), torch.tensor(total).unsqueeze(1)
    book.vectors = book.sums / book.counts.unsqueeze(1)  # 2 and -1
    for features in ([1.0, 3.0, -2.0], [0.9, -1.5, -1.0], [2.0, 2.5, 4.0]):
        codes = [0 if abs(f - total[0] / count[0]) < abs(f - total[1] / count[1]) else 1 for f in features]
        count = [0.9 * count[k] + 0.1 * codes.count(k) for k in range(2)]
        total = [
            0.9 * total[k] + 0.1 * sum(f for f, c in zip(features, codes, strict=True) if c == k) for k in range(2)
        ]
        z = torch.tensor(features).unsqueeze(1)
        book.move(book.statistics(z, book.nearest(z)))
        assert book.vectors.flatten().tolist() == pytest.approx([total[k] / count[k] for k in range(2)], rel=1e-5)


def test_first_move_puts_every_code_on_a_feature():
    book, features = Codebook(6, 3), torch.randn(20, 3) + 5
    book.move(book.statistics(features, book.nearest(features)))
    assert book.initialised
    assert (torch.cdist(book.vectors, features).min(1).values < 1e-4).all()


@pytest.mark.parametrize(("revive", "alive"), [(0.05, True), (0.0, False)])
def test_a_dead_code_is_revived(revive, alive):
    book, features = Codebook(2, 2, decay=0.5, revive=revive), torch.randn(50, 2)
    book.initialised.fill_(True)
    book.counts, book.sums = torch.tensor([25.0, 25.0]), torch.tensor([[0.0, 0.0], [2500.0, 2500.0]])
    book.vectors = book.sums / book.counts.unsqueeze(1)  # the second at (100, 100): nothing is near
    for _ in range(8):
        book.move(book.statistics(features, book.nearest(features)))
    assert (book.nearest(features).unique().numel() == 2) == alive


def test_two_micro_batches_move_the_codebook_as_the_whole_does():
    x = everything(TINY)
    books = []
    for batches in ([Batch(x)], [Batch(x[:8]), Batch(x[8:])]):
        with seeded(0):
            system = wild(VQVAE(TINY, **SMALL, revive=0.0))
        book = system.autoencoder.book("codes")
        book.initialised.fill_(True)
        book.counts.fill_(1.0)
        before = book.sums.copy_(book.vectors).clone()
        step(system, batches, 0.1)
        books.append(book)
        assert not torch.allclose(books[-1].vectors, before)
    for name in ("counts", "sums", "vectors"):
        assert torch.allclose(getattr(books[0], name), getattr(books[1], name), atol=1e-6)


def test_of_several_candidates_one_wins():
    book, parts = Codebook(50, 1), [torch.full((9, 1), value) for value in (1.0, 2.0)]
    torch.manual_seed(0)
    stats = [book.statistics(part, book.nearest(part)) for part in parts]
    book.move({name: stats[0][name] + stats[1][name] for name in stats[0]})
    assert ((book.vectors - book.vectors.round()).abs() < 0.01).float().mean() > 0.7
    assert set(book.vectors.round().flatten().tolist()) == {1.0, 2.0}


# --- the system -----------------------------------------------------------------------------------


def assert_sampled_as(system, x, log_prob, n=8000):
    """Of all examples `x`, in order, every one as often as its density says."""
    places = system.space.levels ** torch.arange(system.space.dims).flip(0)
    drawn = system.sample_encoded(n, seed=0).flatten(1)
    counts, expected = (drawn * places).sum(1).bincount(minlength=len(x)), n * log_prob.exp()
    assert ((counts - expected).abs() < 5 * expected.sqrt() + 1).all()


@pytest.mark.parametrize("space", [TINY, Space("text", (2,), levels=4, symbols="abcd")])
@torch.no_grad()
def test_the_bound_is_one_term_of_the_sum_over_codes(space):
    system, x = wild(VQVAE(space, slots=2, halvings=1, **SMALL)), everything(space)
    grid = system.priors[0].space.shape
    codes = torch.tensor(list(itertools.product(range(3), repeat=grid[1] * grid[2]))).view(-1, *grid)
    log_prior = system.priors[0]._log_prob(codes, None)
    assert log_prior.exp().sum().item() == pytest.approx(1, abs=1e-5)
    (vectors,) = system._vectors(codes)
    terms = torch.stack(
        [
            p + system.autoencoder.log_likelihood(x, v[None].expand(len(x), *v.shape))
            for p, v in zip(log_prior, vectors, strict=True)
        ]
    )
    exact, bound = terms.logsumexp(0), system.score_encoded(Batch(x)).log_prob
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-4)
    assert (bound < exact).all()
    assert_sampled_as(system, x, exact)
    own = (codes.flatten(1)[:, None] == system._codes(x)[0].flatten(1)).all(-1).float().argmax(0)
    assert torch.allclose(bound.float(), terms[own, torch.arange(len(x))], atol=1e-5)


def test_stages_train_apart():
    system, batch = VQVAE(TINY, **SMALL), Batch(everything(TINY))
    assert step(system, [batch], 0.0) == [system.autoencoder]
    assert step(system, [batch], 0.49) == [system.autoencoder]
    before = system.autoencoder.book("codes").vectors.clone()
    assert step(system, [batch], 0.5) == [system.priors[0]]
    assert torch.equal(before, system.autoencoder.book("codes").vectors)
    assert set(system.optimizers()) == {system.autoencoder, system.priors[0]}


def test_encoder_learns_from_decoder_and_commitment_but_not_the_codebook():
    system, batch = wild(VQVAE(TINY, **SMALL)), Batch(everything(TINY))
    system.autoencoder.book("codes").initialised.fill_(True)

    def gradient(commitment):
        system.commitment = commitment
        (update,) = itertools.islice(system.updates(batch, 0.0), 1)
        system.zero_grad()
        update.loss.backward()
        return torch.cat([p.grad.flatten() for p in system.autoencoder.encoder.parameters()])

    assert gradient(0.0).abs().max() > 1e-4
    assert not torch.allclose(gradient(0.0), gradient(1.0))
    assert not system.autoencoder.book("codes").vectors.requires_grad


SPACES = [
    (Space("image", (1, 1, 1), levels=2), {}, (1, 1, 1)),
    (Space("image", (3, 7, 10), levels=256), {"prior": "gated-pixelcnn"}, (1, 2, 3)),
    (Space("image", (2, 5, 4), dtype="float32", condition=LABEL), {}, (1, 2, 1)),
    (MIXED, {"prior": "gated-pixelcnn"}, (1, 1, 4)),
    (Space("text", (6,), levels=4, symbols="abcd", condition=LABEL), {"slots": 3}, (1, 1, 3)),
    (Space("audio", (20,), levels=65536, rate=8000), {}, (1, 1, 4)),
]


@pytest.mark.parametrize(("space", "options", "grid"), SPACES)
def test_every_space(space, options, grid):
    condition = 1 if space.condition else None
    system = wild(VQVAE(space, **{**SMALL, **options}))
    assert system.priors[0].space.shape == grid
    x = space.encode(system.sample(4, condition, seed=0))
    batch = Batch(x, None if condition is None else torch.ones(4, 1))
    for progress in (0.0, 0.1, 0.9):
        step(system, [batch], progress)
    data = space.decode(x)
    assert system.log_prob(data, condition).isfinite().all()
    assert space.encode(system.reconstruct(data, condition)).shape == x.shape
    assert len(system.interpolate(data[:1], data[1:2], 3, condition)) == 3
    assert 0 < system.monitor(batch)["codes_used"] <= 1
    if condition is not None:
        assert not torch.allclose(system.log_prob(data, 0), system.log_prob(data, 2))


@torch.no_grad()
def test_rate_is_what_the_codes_cost_and_temperature_the_priors():
    system, x = wild(VQVAE(TINY, **SMALL)), everything(TINY)
    ((nats, reconstruction),) = system.rate_distortion(x)
    log_likelihood = system.autoencoder.log_likelihood(x, *system._vectors(*system._codes(x)))
    assert torch.allclose((log_likelihood - nats).double(), system.score_encoded(Batch(x)).log_prob, atol=1e-4)
    assert torch.equal(reconstruction, system._decode(system._encode(x, None), None))
    with system.turned(temperature=0.5):
        assert system.priors[0].temperature == 0.5
    assert system.temperature == 1


@pytest.mark.parametrize("prior", ["vae", "vq-vae", "ddpm", "dcgan"])
def test_priors_without_an_exact_autoregressive_density_are_refused(prior):
    with pytest.raises(Unfit, match="made"):
        VQVAE(TINY, prior=prior)


@torch.no_grad()
def test_monitor_measures_the_use_of_the_codebook():
    system, batch = wild(VQVAE(TINY, **SMALL)), Batch(everything(TINY))
    system.autoencoder.book("codes").vectors[1:] = 1e3  # out of reach
    monitor = system.monitor(batch)
    assert monitor["codes_used"] == pytest.approx(1 / 3)
    assert monitor["code_perplexity"] == pytest.approx(1)


def test_same_seed_same_codebook():
    books = []
    for _ in range(2):
        with seeded(3):
            system = VQVAE(TINY, **SMALL)
            for progress in (0.0, 0.1):
                step(system, [Batch(everything(TINY))], progress)
        books.append(system.autoencoder.book("codes").vectors)
    assert torch.equal(*books)
