"""Distillation: the student's divergence from its teacher, by its own samples alone, and the terms beside it."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import fivefold
from fivefold import catalog
from fivefold.bijections.autoregressive import MaskedAutoregressive
from fivefold.errors import Unfit
from fivefold.evaluation.evaluate import sample_quality
from fivefold.flow.distilled_flow import WIDTHS, contrast, perceptual_distance, power_distance
from fivefold.options import slot
from fivefold.space import Batch, Space, label_space
from fivefold.system import Density
from tests.test_flows import MIXED, PLANE, grid_of

PURE = dict.fromkeys(("power", "perceptual", "contrastive", "likelihood"), 0.0)
PIXELS = Space("image", (1, 2, 2), levels=3)


def build(space=PLANE, **options):
    torch.manual_seed(0)
    system = catalog.build(
        "distilled-flow", space, **{"student": slot("iaf-flow", layers=2, hidden=16), **options}
    ).eval()
    with torch.no_grad():
        for part, spread in ((system.teacher, 0.05), (system.student, 0.3)):
            for parameter in part.parameters():
                parameter.add_(spread * torch.randn_like(parameter))
    return system


def step(system, optimizer, n=256):
    optimizer.zero_grad()
    (update,) = system.updates(Batch(torch.zeros(n, 2)), 0.9)
    update.loss.backward(inputs=list(update.player.parameters()))
    optimizer.step()
    return update


@pytest.fixture(scope="module")
def learnt():
    """A fixed teacher, and its student before and after training by the divergence alone."""
    system = build(**PURE)
    before = [p.clone() for p in system.teacher.parameters()]
    first = system.divergence(4000, None).item()
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(system.student.parameters(), 1e-2)
    for _ in range(150):
        step(system, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, system.teacher.parameters(), strict=True))
    return system, first


def test_the_students_divergence_falls(learnt):
    system, first = learnt
    last = system.divergence(4000, None).item()
    assert first > 0.5
    assert -0.01 < last < 0.5 * first  # its conditionals are Gaussian, the teacher's are mixtures


def test_the_divergence_is_survey_equation_35(learnt):
    """Of samples, against the integral of p_S ln(p_S / p_T) over a grid."""
    system, _ = learnt
    line = torch.linspace(-12, 12, 400)
    mesh = torch.cartesian_prod(line, line)
    with torch.no_grad():
        log_student = system.student._point_log_prob(mesh, None)
        log_teacher = system.log_teacher(mesh, None)
        step = (line[1] - line[0]).item()
        truth = (log_student.exp() * (log_student - log_teacher)).sum().item() * step**2
        assert log_student.exp().sum().item() * step**2 == pytest.approx(1, abs=0.01)
        assert log_teacher.exp().sum().item() * step**2 == pytest.approx(1, abs=0.01)
        torch.manual_seed(0)
        draws = torch.stack([system.divergence(500, None) for _ in range(40)])
    assert abs(draws.mean().item() - truth) < 3 * draws.std().item() / 40**0.5 + 2e-3


def test_the_density_is_the_students_and_its_samples_follow_it(learnt):
    system, _ = learnt
    samples, edges, mass = grid_of(system, cells=20)
    assert system.density is Density.EXACT
    assert mass.sum() == pytest.approx(1, abs=0.01)
    counts, _, _ = np.histogram2d(*samples.T, bins=edges)
    often = len(samples) * mass > 5
    expected, observed = len(samples) * mass[often], counts[often]
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


def test_the_student_learns_by_the_teachers_gradient_without_its_own_inverse(monkeypatch):
    """Nothing runs dimension by dimension, and the slope of ln p_T at the samples reaches the student."""
    system = build(PIXELS, likelihood=0.0)
    system.started.fill_(True)  # the moments of the data are taken once, by a pass the other way
    monkeypatch.setattr(MaskedAutoregressive, "inverse", None)
    teacher_term = -system.log_teacher(system.student.draw(8, None)[0], None).mean()
    teacher_term.backward()
    assert any(p.grad is not None and p.grad.any() for p in system.student.parameters())
    (update,) = system.train().updates(Batch(torch.randint(3, (8, 1, 2, 2))), 0.9)
    assert update.player is system.student
    assert update.loss.isfinite()


def test_the_student_starts_with_the_moments_of_the_data():
    system = catalog.build("distilled-flow", PLANE).train()
    x = torch.tensor([5.0, -3.0]) + torch.tensor([0.1, 2.0]) * torch.randn(500, 2)
    for progress in (0.6, 0.9):
        list(system.updates(Batch(x), progress))
        y, _ = system.student.draw(4000, None)
        torch.testing.assert_close(y.mean(0), torch.tensor([5.0, -3.0]), atol=0.3, rtol=0)
        torch.testing.assert_close(y.std(0), torch.tensor([0.1, 2.0]), atol=0.0, rtol=0.1)
        x = x + 10  # and never again


def test_the_teacher_is_evaluated_as_it_is():
    """Without dropout, which it has in training."""
    system = build(PIXELS).train()
    y = torch.rand(50, 1, 2, 2)
    assert torch.equal(system.log_teacher(y, None), system.log_teacher(y, None))
    assert system.teacher.training
    assert any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in system.teacher.modules())


@pytest.mark.parametrize("name", ["made", "gated-pixelcnn", "pixelrnn", "transformer", "sparse-transformer", "bnaf"])
def test_any_autoregressive_system_can_teach(name):
    system = build(PIXELS, teacher=name)
    (first,) = system.updates(Batch(torch.randint(3, (4, 1, 2, 2))), 0.2)
    assert first.player is system.teacher
    assert first.loss.isfinite()
    y = torch.rand(4, 1, 2, 2).requires_grad_()
    slope = torch.autograd.grad(system.log_teacher(y, None).sum(), y)[0]
    assert slope.isfinite().all()
    assert (slope != 0).all()


@pytest.mark.parametrize("name", ["glow", "pixeliqn", "vlae"])
def test_other_teachers_are_refused_with_those_that_fit(name):
    with pytest.raises(Unfit, match=r"cannot be the teacher of DistilledFlow.*These fit: .*made.*bnaf"):
        build(PIXELS, teacher=name)


def test_discrete_columns_are_learnt_as_real_ones():
    system = build(MIXED)
    assert system.density is Density.LOWER_BOUND
    assert system.teacher.density is Density.EXACT
    assert system.teacher.space.dim_levels == (None,) * 5  # three of the categories
    x = torch.tensor([[0.3, 4.0, 2.0], [-1.0, 0.0, 1.0]])
    assert system.score_encoded(Batch(x)).log_prob.isfinite().all()


# --- the terms beside the divergence ------------------------------------------------------------


def pairs(x, y, kernel):
    """The mean over pairs of different rows by a loop."""
    same = x is y
    values = [kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(y) if not (same and i == j)]
    return torch.stack(values).mean()


def test_the_perceptual_distance_is_the_sum_over_pairs_of_different_examples():
    x, y = torch.randn(5, 1, 2, 3).double(), 2 + torch.randn(4, 1, 2, 3).double()
    scale = pairs(y, y, lambda a, b: (a - b).square().sum())
    truth = 0
    for width in WIDTHS:
        kernel = lambda a, b: 1 / (1 + (a - b).square().sum() / (width * scale))  # noqa: E731, B023
        truth += pairs(x, x, kernel) + pairs(y, y, kernel) - 2 * pairs(x, y, kernel)
    assert perceptual_distance(x, y).item() == pytest.approx(truth.item())
    same = torch.stack([perceptual_distance(*torch.randn(2, 16, 3).double()) for _ in range(400)])
    assert abs(same.mean()) < 3 * same.std() / 20  # unbiased: without the diagonals' reward for collapse


@pytest.mark.parametrize("shape", [(2, 3, 4), (3,)], ids=["image", "table"])
def test_the_power_distance_is_of_mean_powers(shape):
    """Against a Fourier transform by its sum, over the half of the frequencies that are not conjugates of others."""
    x, y = torch.randn(5, *shape).double(), 1 + torch.randn(6, *shape).double()

    def powers(one):
        if len(shape) == 1:
            return one.square()
        rows, columns = (torch.exp(-2j * math.pi * torch.outer(k, k) / len(k)) for k in map(torch.arange, shape[1:]))
        return (rows @ one.to(rows.dtype) @ columns)[..., : shape[2] // 2 + 1].abs().square()

    a, b = powers(x).flatten(1), powers(y).flatten(1)
    truth = pairs(a, a, torch.dot) + pairs(b, b, torch.dot) - 2 * pairs(a, b, torch.dot)
    assert power_distance(x, y).item() == pytest.approx((truth / (b @ b.T).mean()).item())
    assert power_distance(x, y) > 0.01


def test_the_contrastive_term_is_of_the_teacher_given_another_condition():
    system = build(PLANE.conditioned_on(label_space(("cat", "dog", "cow"))))
    condition = torch.tensor([[0], [1], [2], [1]])
    found = contrast(system, drawn := system._draw(4, condition), Batch(torch.randn(4, 2), condition))
    other = torch.stack(
        [
            system.log_teacher(y[None], c[None])[0]
            for y, c in zip(drawn.samples, condition[torch.tensor([3, 0, 1, 2])], strict=True)
        ]
    )
    torch.testing.assert_close(found, (other - drawn.log_student).mean())
    assert abs(found + system._divergence(drawn)) > 1e-3


def test_the_terms_have_their_weights_and_leave_out_what_has_no_meaning():
    batch = Batch(torch.randn(8, 2))
    system = build(power=2.0, perceptual=5.0, likelihood=0.5)
    (update,) = system.updates(batch, 0.9)
    assert set(update.stats) == {"divergence", "power", "perceptual", "likelihood"}
    weights = {"divergence": 1, "power": 2, "perceptual": 5, "likelihood": 0.5}
    truth = sum(weights[name] * value for name, value in update.stats.items())
    torch.testing.assert_close(update.loss.detach(), truth)
    torch.testing.assert_close(update.stats["likelihood"], -system.student._point_log_prob(batch.x, None).mean())
    (alone,) = system.updates(Batch(batch.x[:1]), 0.9)
    assert set(alone.stats) == {"divergence", "likelihood"}
    (pure,) = build(**PURE).updates(batch, 0.9)
    assert set(pure.stats) == {"divergence"}
    conditional = build(PLANE.conditioned_on(label_space(("cat", "dog"))), **PURE | {"contrastive": 0.3})
    (given,) = conditional.updates(Batch(batch.x, torch.tensor([[0], [1]] * 4)), 0.9)
    torch.testing.assert_close(given.loss.detach(), given.stats["divergence"] + 0.3 * given.stats["contrastive"])


@pytest.mark.slow
def test_samples_of_the_student_have_the_diversity_of_digits():
    """By the divergence alone nearly all are one digit: Fréchet 31, coverage 0.2. Independent pixels: 18.8 and 2.41."""
    data = fivefold.load_data("digits")
    system = fivefold.fit("distilled-flow", data, budget="600steps", evaluations=1)
    quality = sample_quality(system.sample_encoded(1000, seed=0), data)
    assert quality["frechet"]["value"] < 10
    assert quality["recall"]["value"] > 0.6
    assert quality["coverage"]["value"] > 0.5
    nats = system.score_encoded(data.test.batch(slice(None))).log_prob.mean()
    assert -nats / data.space.dims / np.log(2) < 2.3
