"""Unnormalised densities turned into estimates, against quadrature and enumeration."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import fivefold
from fivefold.cli.app import app
from fivefold.energy.igebm import IGEBM
from fivefold.energy.nce import NCE
from fivefold.errors import Unfit
from fivefold.space import Batch, Column, Space, label_space
from fivefold.system import Density

PLANE = Space("table", (2,), columns=(Column("x"), Column("y")))
LEVELS = Space("image", (1, 1, 3), 4)
SMALL = {"width": 4, "sample_steps": 3}


def steep(system, by=1.5):
    """The same system with a rugged energy."""
    with torch.no_grad():
        system.temperature = 1 / by
        for parameter in system.energy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return system.eval()


def quadrature(system, condition=None):
    """ln of the integral of exp(-E) over the box, on a grid."""
    axis = torch.linspace(-10, 10, 801)
    grid = torch.cartesian_prod(axis, axis)
    given = None if condition is None else condition.expand(len(grid), -1)
    with torch.no_grad():
        values = -system.nats(grid, given).double()
    return (values.logsumexp(0) + 2 * math.log(20 / 800)).item()


@pytest.mark.parametrize("cls", [IGEBM, NCE])
def test_ln_z_is_that_of_quadrature_and_densities_integrate_to_one(cls):
    system = steep(cls(PLANE, **SMALL, reference=1.5))
    truth, x = quadrature(system), torch.randn(5, 2)
    before = system.score_encoded(Batch(x)).log_prob
    found = system.log_partition(temperatures=40)
    for estimate in (found.lower, found.upper, found.middle):
        assert abs(estimate.value - truth) < 3 * estimate.error
    assert found.middle.error < 0.5
    said = system.normalise(40)
    assert f"{found.middle.value.item():.5g}" in said
    assert "40 temperatures" in system.density_note
    assert system.density is Density.ESTIMATE
    after = system.score_encoded(Batch(x))
    torch.testing.assert_close(after.log_prob, before - found.middle.value, atol=1e-4, rtol=1e-4)
    assert (after.standard_error == found.middle.error).all()


def test_masses_of_levels_sum_to_one():
    system = steep(IGEBM(LEVELS, **SMALL), 1.0)
    x = torch.cartesian_prod(*[torch.arange(4)] * 3).view(64, 1, 1, 3)
    system.normalise(40)
    log_prob, error = system.score_encoded(Batch(x))
    mass, common = log_prob.exp(), system.normaliser.log_z(None)[1]
    assert mass.max() > 4 * mass.min()
    assert abs(mass.sum() - 1) < 3 * torch.hypot((mass * error).norm(), common)
    assert error.max() < 0.6


def test_every_condition_has_its_own():
    space = replace(PLANE, condition=label_space(("a", "b")))
    system = steep(IGEBM(space, **SMALL, reference=1.5))
    assert "every condition" in system.normalise(40)
    x, condition = torch.zeros(4, 2), torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    log_prob, error = system.score_encoded(Batch(x, condition))
    with torch.no_grad():
        plain = -system.nats(x, condition).double()
    truth = [quadrature(system, condition[:1]), quadrature(system, condition[1:2])] * 2
    assert abs(truth[0] - truth[1]) > 0.1
    assert ((log_prob - plain + torch.tensor(truth).double()).abs() < 3 * error).all()


def test_what_has_a_constant_already_is_refused():
    for name in ("rbm", "spline-flow"):
        system = fivefold.catalog.build(name, PLANE)
        with pytest.raises(Unfit, match="no constant to estimate"):
            system.normalise()


def test_scores_of_a_run_say_that_they_are_an_estimate(tmp_path):
    run = tmp_path / "run"
    fivefold.fit("igebm", fivefold.load_data("moons"), budget="3steps", out=run, width=8)
    words = ["score", str(run), "--out", str(tmp_path / "s.csv")]
    plain = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "unnormalised" in plain.output
    found = CliRunner().invoke(app, [*words, "--log-z", "--temperatures", "20"], catch_exceptions=False)
    assert "(estimate, ln Z" in found.output
    assert "unknown constant" not in found.output
    frame = pd.read_csv(tmp_path / "s.csv")
    assert set(frame["kind"]) == {"estimate"}
    assert (frame["standard_error"] > 0).all()
