"""Neural transport: a flow tilted by an energy, its chains in the flow's noise."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from fivefold.energy._tilted import TiltedSystem
from fivefold.options import Need, option, slot
from fivefold.system import Density
from fivefold.tools.scaling import dequantise, dequantised_log_prob, midpoint, quantise


class NTEBM(TiltedSystem):
    """Neural transport energy (survey 2.4.1; Nijkamp et al., 2022).

    A flow q is trained, and an energy then tilts it, p(x) = q(x) exp(-E(x)) / Z: where the flow's one mode of noise
    cannot take the shape of the data, the energy cuts away what is too much. Chains that move in the flow's noise, by
    Hamiltonian Monte Carlo, go from mode to mode of the data, since in noise there is one; in the space of the data
    they would stay where they start.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.ESTIMATE, "table": Density.ESTIMATE}
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"clip": 10.0}}

    flow: Any = option(
        slot("glow", layers=4, scales=2, hidden=48),
        "trained first, and tilted by the energy then",
        needs=Need(
            "a flow that makes examples of noise in one pass, and has their exact density",
            methods=("push", "_point_log_prob"), sampling="direct", without=("draws", "chooses"),
        ),
    )  # fmt: skip
    objective: Any = slot("contrastive-divergence", kernel="hamiltonian", chain_steps=3, reset_rate=0.1)
    sampler = "hamiltonian"
    sample_steps = 10
    score_samples: int = option(16, "points in each cell when discrete examples are scored", least=1)
    lr = 5e-3

    def build(self) -> None:
        super().build()
        self.flow = self.fill("flow", self.space, lr=self.lr, score_samples=self.score_samples)
        self.energy = self.energy_net()
        self.learn_by_objective()

    @property
    def base(self) -> Any:
        return self.flow

    def enter(self, x: Tensor) -> Tensor:
        return midpoint(x, self.space)

    def data(self, x: Tensor) -> Tensor:
        """Anywhere in the cell of a level, as the flow has it."""
        return dequantise(x, self.space)

    def leave(self, y: Tensor) -> Tensor:
        return quantise(y, self.space)

    def tilted(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of discrete examples by points of their cells: of both factors alike."""
        return dequantised_log_prob(
            lambda y, given: self.flow._point_log_prob(y, given) - self.energy(y, given), x, condition, self.space,
            self.score_samples,
        )  # fmt: skip
