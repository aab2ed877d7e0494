"""Flows whose mechanism could sleep: after a short training from the default start it is in use, and data learnt."""

import pytest
import torch

import fivefold
from fivefold.bijections.base import Inverse
from fivefold.bijections.determinant import Planar, Sylvester
from fivefold.bijections.residual import Residual
from fivefold.flow.flow_mixture import softened_sum
from fivefold.tools.baselines import IndependentDims
from fivefold.tools.scaling import midpoint


@torch.no_grad()
def log_dets(system, batch, kind):
    """ln |det| `(layers, B)` of every layer of a kind, on the way to noise."""
    found = []
    for part in system.modules():
        if isinstance(part, kind):
            part.register_forward_hook(lambda part, given, result: found.append(result[1]))
    system.flow(midpoint(batch.x, system.space))
    return torch.stack(found)


def flows_in_use(system, batch):
    return system.monitor(system.lifted(batch))["flows_in_use"]


def bends(kind):
    """How many layers' determinants differ between examples, by more than 0.01 nats: a linear map's does not."""
    return lambda system, batch: (log_dets(system, batch, kind).std(1) > 0.01).sum().item()


def inverted_stretch(system, batch):
    """Nats by which the inverted halves of implicit blocks change volume."""
    return log_dets(system, batch, Inverse).sum(0).abs().mean().item()


# what to train on, how long, a measure of the mechanism and what it has to exceed
CASES = {
    "flow-mixture": ("digits", 120, flows_in_use, 2),
    "planar-flow": ("digits", 250, bends(Planar), 32),  # of 64
    "sylvester-flow": ("digits", 250, bends(Sylvester), 7),  # of 8
    "residual-flow": ("digits", 150, bends(Residual), 5),  # of 8
    "implicit-flow": ("digits", 150, inverted_stretch, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_mechanism_is_in_use_and_digits_are_learnt(name):
    source, steps, measure, least = CASES[name]
    data = fivefold.load_data(source)
    system = fivefold.fit(name, data, budget=f"{steps}steps", evaluations=1)
    test = data.test.batch(slice(None))
    assert measure(system, test) > least
    independent = IndependentDims(data.space, data.train.batch(slice(None)).x)
    assert system.score_encoded(test).log_prob.mean() > independent.log_prob(test.x).mean()


def test_several_flows_of_a_mixture_are_in_use_on_a_table():
    data = fivefold.load_data("cancer")
    system = fivefold.fit("flow-mixture", data, budget="80steps", evaluations=1)
    assert flows_in_use(system, data.test.batch(slice(None))) > 2


def test_softened_shares_fall_to_those_of_the_density():
    joint = (3 * torch.randn(4, 6).double()).requires_grad_()
    for heat in (1.0, 3.0, 100.0):
        (slope,) = torch.autograd.grad(softened_sum(joint, heat).sum(), joint)
        torch.testing.assert_close(slope, (joint / heat).softmax(0))
        assert (softened_sum(joint, heat) <= joint.logsumexp(0) + 1e-12).all()
    torch.testing.assert_close(softened_sum(joint, 1.0), joint.logsumexp(0))
    system = fivefold.catalog.build("flow-mixture", fivefold.load_data("cancer").space)
    dims = system.space.dims
    assert [system.heat(progress) for progress in (0, 0.25, 0.5, 1)] == pytest.approx([dims, dims**0.5, 1, 1])
    plain = fivefold.catalog.build("flow-mixture", system.space, softening=0.0)
    assert plain.heat(0.0) == 1
