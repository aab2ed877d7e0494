"""PixelIQN: the quantile loss, what its parts do to a distribution that is learnt, samples."""

import numpy as np
import pytest
import torch

from fivefold import catalog, fit
from fivefold.data.splits import Data, Split
from fivefold.space import Space, label_space
from fivefold.tools import quantiles
from fivefold.tools.quantiles import cosines, quantile_huber

SMALL = {"channels": 16, "layers": 1, "embedding": 4, "dropout": 0.0, "features": 32}


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.8])
def test_the_loss_is_least_at_the_quantile(tau):
    """Of a thousand numbers, on a grid; with a large kappa it is half of a square, of expectiles."""
    x = torch.from_numpy(np.random.default_rng(0).exponential(size=1001))
    grid = torch.linspace(0, 3, 3001, dtype=torch.float64)

    def best(kappa):
        values = quantile_huber(x - grid[:, None], torch.tensor(tau, dtype=torch.float64), kappa).mean(1)
        return grid[values.argmin()].item()

    assert best(1e-6) == pytest.approx(x.quantile(tau).item(), abs=0.005)
    below, above = (x - best(100.0)).clamp(max=0).sum(), (x - best(100.0)).clamp(min=0).sum()
    assert (tau * above + (1 - tau) * below).abs() < 1
    at = quantile_huber(torch.tensor([-2.0, -0.1, 0.1, 2.0]), torch.tensor(tau), 0.5)
    wanted = [(1 - tau) * 1.75, (1 - tau) * 0.01, tau * 0.01, tau * 1.75]  # over kappa
    assert at.tolist() == pytest.approx(wanted)


def test_cosines():
    tau = torch.tensor([0.0, 0.25, 1.0])
    assert torch.allclose(cosines(tau, 3), torch.tensor([[1, 1, 1], [1, 0.5**0.5, 0], [1, -1, 1]]), atol=1e-6)


def learnt(steps=400):
    """Two pixels, the second the complement of the first, which has gaps that no Gaussian would leave."""
    space = Space("image", (1, 1, 2), levels=5)
    first = torch.tensor([0] * 4 + [1] * 1 + [4] * 5).repeat(60)
    x = torch.stack([first, 4 - first], 1).view(-1, 1, 1, 2)
    data = Data("toy", space, *[Split(200, x[i::3]) for i in range(3)], fingerprint="")
    options = {"lr": 5e-3, "weight_decay": 0.0, "ema": 0.98, "batch_size": 64, "precision": "32"}
    return fit("pixeliqn", data, budget=f"{steps}steps", seed=0, evaluations=1, **options, **SMALL)


def frequencies(system):
    x = system.sample_encoded(4000, seed=0).flatten(1)
    return x[:, 0].bincount(minlength=5) / 4000, ((x.sum(1) - 4).abs() <= 1).float().mean().item()


def test_samples_have_the_distribution_that_was_learnt():
    marginal, obeyed = frequencies(learnt())
    assert (marginal - torch.tensor([0.4, 0.1, 0, 0, 0.5])).abs().max() < 0.06
    assert obeyed > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("function", "without"), [
    ("quantile_huber", lambda error, tau, kappa: error.abs()),  # not asymmetric: the median whatever tau is
    ("cosines", lambda tau, count: torch.ones(*tau.shape, count)),  # tau is not told
])  # fmt: skip
def test_without_its_mechanism_the_distribution_is_lost(function, without, monkeypatch):
    monkeypatch.setattr(f"fivefold.autoregressive.pixeliqn.{function}", without)
    assert getattr(quantiles, function) is not without
    marginal, _ = frequencies(learnt())
    assert (marginal - torch.tensor([0.4, 0.1, 0, 0, 0.5])).abs().max() > 0.1


SPACES = [Space("image", shape, levels=levels) for shape in [(1, 3, 4), (3, 4, 3), (1, 1, 1)] for levels in (5, None)]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_incremental_sampling_equals_full_evaluation(space):
    torch.manual_seed(0)
    space = space.conditioned_on(label_space(("a", "b")))
    system = catalog.build("pixeliqn", space, **SMALL)
    torch.nn.init.normal_(system.head.last.weight)
    condition = torch.arange(16).remainder(2).view(16, 1).float()
    with system.evaluating(), system.turned(temperature=0.9):
        noise = system.head.noise(16)
        parts = [f(noise, condition).double() for f in (system._sample_from, system._sample_full_from)]
    torch.testing.assert_close(*parts, rtol=1e-3, atol=1e-4)


def test_temperature_draws_tau_nearer_to_the_median_and_a_tau_a_dimension():
    system = catalog.build("pixeliqn", Space("image", (1, 4, 4)), **SMALL)
    torch.nn.init.zeros_(system.head.last.weight)
    torch.nn.init.zeros_(system.head.last.bias)  # so that a value is 2 tau - 1
    with system.turned(temperature=0.5):
        cold = system.sample_encoded(500, seed=0).flatten(1)
    warm = system.sample_encoded(500, seed=0).flatten(1)
    torch.testing.assert_close(((cold + 1) / 2).logit(), ((warm + 1) / 2).logit() / 2, rtol=1e-2, atol=1e-2)
    assert warm.std().item() == pytest.approx(3**-0.5, abs=0.02)
    assert torch.corrcoef(warm.T).fill_diagonal_(0).abs().max() < 0.2
