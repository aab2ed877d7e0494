"""Dials and hierarchies: what turning one does, and what each level adds."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from fivefold import Density, load_data
from fivefold.diagnostics import diagnose
from fivefold.report.columns import Line
from fivefold.report.page import _diagnostics
from fivefold.system import LatentSystem


class Dialled(LatentSystem):
    """Gaussian samples of a share `spread` of the data's deviation, and two levels of 1 and 3 nats."""

    densities: ClassVar = {"table": Density.NONE}
    dials: ClassVar = {"spread": (0.0, 0.5, 1.0), "steps": (1, 4)}

    def __init__(self, space, *, spread: float = 1.0, steps: int = 2) -> None:
        super().__init__(space)
        self.spread, self.steps = spread, steps
        self.scale = nn.Parameter(torch.ones(()))

    @property
    def sample_evaluations(self) -> int:
        return self.steps

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return self.scale * self.spread * torch.randn(n, *self.space.shape)

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return x

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return z

    def _rate_distortion(self, x, condition):
        return [(torch.ones(len(x)), x + 2), (3 * torch.ones(len(x)), x)]


@pytest.fixture(scope="module")
def system_and_data():
    data = load_data(torch.randn(400, 2, generator=torch.Generator().manual_seed(0)).numpy())
    return Dialled(data.space), data


def test_dials_turn_for_a_call_and_back(system_and_data):
    system, _ = system_and_data
    assert system.sample(50, seed=0, spread=0.5).std() < 0.7 * system.sample(50, seed=0).std()
    assert system.spread == 1.0
    with pytest.raises(ValueError, match="no dial 'temperature'; its dials: spread, steps"):
        system.sample(1, temperature=0.5)
    with system.turned(steps=4.0):
        assert (system.steps, type(system.steps)) == (4, int)
    assert system.steps == 2


def test_quality_follows_a_dial(system_and_data):
    found = diagnose(*system_and_data)
    quality = [point["frechet"]["value"] for point in found["dials"]["spread"]]
    assert quality[0] > quality[1] > quality[2]
    recall = [point["recall"]["value"] for point in found["dials"]["spread"]]
    assert recall[0] < recall[2]
    assert [point["evaluations"] for point in found["dials"]["steps"]] == [1, 4]
    assert found["levels"] == [{"nats": 1.0, "distortion": pytest.approx(4.0)}, {"nats": 3.0, "distortion": 0.0}]


def test_the_page_draws_them(system_and_data):
    row = {"label": "dialled", "family": "vae", "status": "ok", "diagnostics": diagnose(*system_and_data)}
    drawn = "".join(_diagnostics(Line("dialled", (row,)))["plots"])
    for title in ("spread", "evaluations a sample", "rate in nats", "distortion", "Recall", "Fréchet distance"):
        assert title in drawn
    assert _diagnostics(Line("plain", ({"label": "plain", "family": "vae", "status": "ok"},)))["plots"] == []
