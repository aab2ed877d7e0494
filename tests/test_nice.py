"""NICE: volumes change by the scaling alone, and the noise is logistic."""

import math

import pytest
import torch
from scipy import stats
from torch.autograd.functional import jacobian

from fivefold.bijections.coupling import Coupling
from fivefold.bijections.linear import ActNorm
from fivefold.catalog import find
from tests.test_flows import PLANE, SPACES, build


def test_only_the_scaling_changes_volumes():
    """Its logarithms add up to the log-determinant everywhere; the couplings' Jacobians have determinant 1."""
    system = build("nice", SPACES["real image"], spread=0.5).double()
    (scaling,) = (part for part in system.flow.modules() if isinstance(part, ActNorm))
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    _, log_det = system.flow(x)
    torch.testing.assert_close(log_det, scaling.norm.log_scale.sum().expand(5))
    matrix = jacobian(lambda p: system.flow(p[None])[0][0], x[0]).view(16, 16)
    torch.testing.assert_close(torch.linalg.slogdet(matrix).logabsdet, log_det[0])
    assert (matrix - matrix.diagonal().diag()).abs().max() > 0.01


@pytest.mark.parametrize(("couplings", "all_meet"), [(2, False), (3, True)])
def test_three_couplings_let_every_dimension_reach_every_other(couplings, all_meet):
    system = build("nice", SPACES["real image"], spread=0.3, couplings=couplings).double()
    parts = [part for part in system.flow.modules() if isinstance(part, Coupling)]
    assert [part.change[0].item() for part in parts] == [1, 0, 1][:couplings]  # odd, even, odd
    x = torch.randn(1, 4, 4, dtype=torch.float64)
    matrix = jacobian(lambda p: system.flow(p[None])[0][0], x).view(16, 16)
    assert bool((matrix != 0).all()) is all_meet


@pytest.mark.parametrize(("prior", "law"), [("logistic", stats.logistic), ("gaussian", stats.norm)])
def test_the_noise_has_the_law_that_is_chosen(prior, law):
    """At the start the flow is the identity: density and samples are the prior's, in the user's units."""
    system = build("nice", PLANE, spread=0.0, prior=prior)
    location, scale = (3.0, -1.0), (0.5, 20.0)
    x = system.sample(4000, seed=0)
    truth = sum(law.logpdf(x[:, i], location[i], scale[i]) for i in range(2))
    torch.testing.assert_close(system.log_prob(x), torch.tensor(truth), rtol=1e-4, atol=1e-4)
    for i in range(2):
        assert stats.kstest(x[:, i], law(location[i], scale[i]).cdf).pvalue > 1e-3


def test_the_paper_has_deep_networks():
    net = next(p.net for p in find("nice").load()(PLANE, hidden=8, layers=5).modules() if isinstance(p, Coupling))
    linear = [part for part in net.modules() if isinstance(part, torch.nn.Linear)]
    assert [part.out_features for part in linear] == [8] * 5 + [1]
    assert math.prod(linear[0].weight.shape) == 8
