"""Flow contrastive estimation: Eq. 10 at its optimum, who learns what from it, both densities."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from fivefold import catalog
from fivefold.energy import flow_contrastive
from fivefold.energy.flow_contrastive import FlowContrastive
from fivefold.errors import Unfit
from fivefold.options import options_of, slot
from fivefold.space import Batch, Column, Space, label_space
from fivefold.system import fitting
from fivefold.tools.scaling import dequantise

PLANE = Space("table", (2,), columns=(Column("x"), Column("y")))
TINY = Space("image", (1, 2, 2), levels=3)  # 81 images
SMALL = {"flow": slot("glow", layers=2, hidden=16), "width": 16, "blocks": 1}


def build(space: Space, **options) -> FlowContrastive:
    torch.manual_seed(0)
    system = FlowContrastive(space, **SMALL | options)
    example = torch.randn(64, 2) if space is PLANE else torch.randint(3, (64, 1, 2, 2))
    system.flow.loss(Batch(example))  # actnorm starts
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return system.eval()


class Same(torch.nn.Module):
    """ln p = ln q + gain."""

    def __init__(self, flow, gain: float) -> None:
        super().__init__()
        self.flow, self.gain = [flow], gain

    def forward(self, x, condition=None):
        return self.flow[0]._point_log_prob(x, condition) + self.gain


class Bowl(torch.nn.Module):
    """f(x) = -|x|^2 / 3."""

    def forward(self, x, condition=None):
        return -x.square().sum(1) / 3


def test_value_is_eq_10():
    """-2 ln 2 where p = q; else E ln p/(p+q) + E ln q/(p+q) with the ratio that is set."""
    system, y = build(PLANE), torch.randn(500, 2)
    for gain in (0.0, 1.5):
        system.energy = Same(system.flow, gain)
        value, stats = system.value(y, None, flow_learns=False)
        expected = math.log(1 / (1 + math.exp(-gain))) + math.log(1 / (1 + math.exp(gain)))
        assert value.item() == pytest.approx(expected, abs=1e-3)
        assert stats["ratio_samples"].item() == pytest.approx(gain, abs=1e-3)


def test_samples_come_with_their_density():
    system = build(TINY)
    y, log_q = system.flow.draw(50, None)
    torch.testing.assert_close(log_q, system.flow._point_log_prob(y, None), rtol=1e-3, atol=1e-3)


def test_only_the_flow_learns_first_and_then_both_play():
    system, batch = build(PLANE), Batch(torch.randn(32, 2))
    assert [update.player for update in system.updates(batch, 0.1)] == [system.flow]
    system.started.fill_(True)
    updates = list(system.updates(batch, 0.9))
    assert [update.player for update in updates] == [system.energy, system.energy, system.flow]
    for update, other in zip(updates[1:], (system.flow, system.energy), strict=True):
        gradient = torch.autograd.grad(
            update.loss, list(update.player.parameters()), allow_unused=True, retain_graph=True
        )
        assert any(g is not None and g.abs().sum() > 0 for g in gradient)
        assert other is not update.player
    assert updates[1].loss.item() == pytest.approx(-updates[2].loss.item(), rel=0.5)  # what one gains the other loses


def test_the_flow_learns_by_its_samples_and_its_density(monkeypatch):
    """Its gradient is that of Eq. 10 in every way that q enters it, by finite differences."""
    system = build(PLANE).double()
    monkeypatch.setattr(torch, "randn", partial(torch.randn, dtype=torch.float64))
    y = torch.randn(64, 2)
    parameter = max(system.flow.parameters(), key=torch.numel)

    def value() -> torch.Tensor:
        torch.manual_seed(1)
        return system.value(y, None, flow_learns=True)[0]

    (gradient,) = torch.autograd.grad(value(), parameter)
    with torch.no_grad():
        direction = torch.randn_like(parameter)
        parameter.add_(1e-5 * direction)
        above = value()
        parameter.sub_(2e-5 * direction)
        below = value()
    assert ((above - below) / 2e-5).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-3, abs=1e-6)


def test_temperature_scales_the_noise_and_levels_are_compared_at_random_points(monkeypatch):
    system, seen = build(TINY), []
    with monkeypatch.context() as patched:
        patched.setattr(system.flow, "_decode", lambda z, condition: z)
        warm = system.sample_encoded(9, seed=0)
        with system.turned(temperature=0.5):
            torch.testing.assert_close(system.sample_encoded(9, seed=0), warm / 2)
    monkeypatch.setattr(flow_contrastive, "dequantise", lambda x, space: seen.append(dequantise(x, space)) or seen[-1])
    list(system.updates(Batch(torch.zeros(64, 1, 2, 2, dtype=torch.long)), 0.9))
    assert len(seen[0].unique()) > 200


def test_the_constant_starts_where_both_agree():
    system = build(PLANE)
    system.energy.constant.data.fill_(300.0)
    next(system.updates(Batch(torch.randn(32, 2)), 0.9))
    assert abs(system.value(torch.randn(512, 2), None, flow_learns=False)[1]["ratio_samples"].item()) < 0.5
    assert system.started


@pytest.mark.parametrize(("scored", "kind"), [("flow", "exact"), ("energy", "estimate")])
def test_both_densities_integrate_to_one(scored, kind):
    system = build(PLANE, scored=scored)
    system.energy.net = Bowl()
    system.energy.constant.data.fill_(3.0)  # wrong: importance sampling mends it
    assert system.density.value == kind
    side = torch.linspace(-12, 12, 400)
    score = system.score_encoded(Batch(torch.cartesian_prod(side, side)), batch_size=40_000)
    total = score.log_prob.exp().sum().item() * (side[1] - side[0]).item() ** 2
    assert abs(total - 1) < 4 * score.standard_error.max().item() + 0.01
    assert (score.standard_error > 0).all().item() == (scored == "energy")


def test_the_energy_of_levels_is_a_bound_on_probabilities():
    system = build(TINY, scored="energy", score_samples=256)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, *TINY.shape)
    assert 0.2 < system.score_encoded(Batch(every)).log_prob.exp().sum().item() < 1.1


def test_the_energys_normaliser_is_of_each_condition():
    space = PLANE.conditioned_on(label_space(("a", "b")))
    torch.manual_seed(0)
    system = FlowContrastive(space, **SMALL).eval()
    with torch.no_grad():
        for parameter in system.energy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    value, error = system.log_normaliser(torch.tensor([[0.0], [1.0], [0.0]]))
    assert value[0] == value[2] != value[1]
    assert (error > 0).all()


@pytest.mark.slow
def test_both_learn_a_law_with_two_modes():
    """Trained against each other, the energy too gives the data more than it gives what lies between."""
    torch.manual_seed(0)
    system = FlowContrastive(PLANE, **SMALL | {"flow": slot("glow", layers=4, hidden=16)}).train()
    optimizers = system.optimizers()
    for step in range(240):
        x = 0.3 * torch.randn(128, 2) + torch.randint(2, (128, 1)) * 2.4 - 1.2
        for update in system.updates(Batch(x), 0.4 if step < 80 else 0.7):
            optimizers[update.player].zero_grad()
            for group in optimizers[update.player].param_groups:
                group["lr"] = 2e-3
            update.loss.backward(inputs=list(update.player.parameters()))
            optimizers[update.player].step()
    system.eval()
    modes, between = torch.tensor([[1.2, 1.2], [-1.2, -1.2]]), torch.tensor([[1.2, -1.2], [-1.2, 1.2]])
    assert (system.energy(modes) > system.energy(between).max() + 1).all()
    assert abs(system.monitor(Batch(x))["log_normaliser"]) < 0.5


FITTING = ("glow", "iaf-flow", "nice", "realnvp", "spline-flow")


def test_flows_that_fit_draw_with_the_density_of_what_they_draw():
    assert tuple(fitting(options_of(FlowContrastive)["flow"].needs, PLANE)) == FITTING
    for name in FITTING:
        flow = catalog.build(name, PLANE).eval()
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            y, log_q = flow.draw(200)
            torch.testing.assert_close(flow._point_log_prob(y, None), log_q, rtol=1e-3, atol=1e-3)
        assert "drawn" not in flow.flow.exactness[:2]  # nothing that is chosen at random stops the gradient


@pytest.mark.parametrize("flow", ["realnvp", "spline-flow"])
def test_any_flow_that_draws_with_its_density_can_be_played_against(flow):
    system = FlowContrastive(PLANE, flow=slot(flow, layers=2, hidden=16), width=16, blocks=1)
    updates = list(system.updates(Batch(torch.randn(32, 2)), 0.9))
    assert all(update.loss.isfinite() for update in updates)
    assert system.sample_encoded(3, seed=0).shape == (3, 2)
    with pytest.raises(Unfit, match=r"These fit: .*glow"):
        FlowContrastive(PLANE, flow="made")
    with pytest.raises(Unfit, match="exact density"):  # anf's draws have one draw's bound
        FlowContrastive(PLANE, flow="anf")
