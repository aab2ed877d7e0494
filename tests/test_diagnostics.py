"""Dials and hierarchies: what turning one does, and what each level adds."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from fivefold import Density, Space, catalog, load_data
from fivefold.evaluation.diagnostics import diagnose
from fivefold.options import option
from fivefold.report.details import dials
from fivefold.report.survey import TABLE_1
from fivefold.system import LatentSystem


class Dialled(LatentSystem):
    """Gaussian samples of a share `spread` of the data's deviation, and two levels of 1 and 3 nats."""

    densities: ClassVar = {"table": Density.NONE}
    dials: ClassVar = {"spread": (0.0, 0.5, 1.0), "steps": (1, 4)}

    spread: float = option(1.0, "of the samples", least=0)
    steps: int = option(2, "evaluations", least=1)

    def build(self) -> None:
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


DIAL = {  # what fits a family; a hierarchy's levels come beside it
    "gan": "truncation", "diffusion": "sampling_steps", "autoregressive": "temperature", "flow": "temperature",
    "igebm": "sample_steps", "vaebm": "sample_steps", "flow-contrastive": "temperature", "vae": None,
    "ffjord": "sampling_tolerance", "residual-flow": "tolerance",
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE_1)
def test_every_system_of_table_1_has_what_fits_its_family(name):
    family, cls = catalog.entries()[name].family, catalog.class_of(name)
    if family == "vae":
        assert cls._rate_distortion is not LatentSystem._rate_distortion
    wanted = DIAL[name] if name in DIAL else DIAL.get(family, "temperature")
    assert wanted is None or wanted in cls.dials
    for values in cls.dials.values():
        assert len(set(values)) == len(values) > 1


@pytest.mark.parametrize("name", [name for name in TABLE_1 if catalog.entries()[name].family == "gan"])
def test_truncation_takes_variety_and_at_its_largest_value_leaves_samples_as_they_were(name):
    torch.manual_seed(0)
    system = catalog.build(name, Space("image", (1, 8, 8), 256), latent=8, width=4)
    with torch.no_grad():
        for parameter in system.parameters():  # biases that begin at 0 have nothing to draw a code to
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain, drawn = system.sample_encoded(100, seed=0), []
    for value in system.dials["truncation"]:
        with system.turned(truncation=value):
            drawn.append(system.sample_encoded(100, seed=0))
    assert torch.equal(drawn[-1], plain)
    spreads = [x.double().var(0).mean().item() for x in drawn]
    assert spreads == sorted(spreads)
    assert spreads[0] < 0.8 * spreads[-1]


def test_the_page_draws_them(system_and_data):
    row = {"label": "dialled", "family": "vae", "status": "ok", "diagnostics": diagnose(*system_and_data)}
    drawn = "".join(dials(row, "own"))
    for title in ("spread", "evaluations a sample", "rate in nats", "distortion", "Recall", "Fréchet distance"):
        assert title in drawn
    assert dials({"label": "plain"}, "vae") == []
