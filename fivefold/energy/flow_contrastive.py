"""An energy and a flow that learn from telling each other apart from data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, distributed, nn

from fivefold.energy._normaliser import by_condition
from fivefold.energy._system import EnergySystem
from fivefold.options import Need, option, slot
from fivefold.system import Batch, Density, LatentSystem, Update, log_mean_exp, temperature_of
from fivefold.tools.games import logistic_discriminator
from fivefold.tools.scaling import dequantise, dequantised_log_prob
from fivefold.tools.schedule import late_fall, second_stage

DRAWS = 2000  # of the flow, to estimate the energy's normaliser ...
START = 256  # ... and to start c
SECOND_RATE = 0.04  # of the flow's learning rate, when it plays against the energy


class FlowContrastive(EnergySystem, LatentSystem):
    """Flow contrastive estimation (survey 2.4.2; Gao et al., 2020).

    An energy p(x) = exp(f(x) - c) and a flow q(x) are trained against each other by noise contrastive estimation
    (survey Eq. 10): with u(x) = ln p(x) - ln q(x), the energy tells data from the flow's samples by sigmoid(u), and the
    flow, both in its density and in its samples, makes that hard. At the optimum both are the law of the data, and c
    is the energy's ln Z. The flow is first trained by maximum likelihood, or nothing would be close enough to compare.

    Samples and codes are the flow's. Both have a density: `scored` says which is shown. The energy's is normalised by
    importance sampling with the flow, which the learned c should agree with (see the monitor).
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    free_form: ClassVar[bool] = True  # of the energy; the flow that it plays against is not
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.7, 0.85, 1.0)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.99, "clip": 5.0},
        "cifar10": {
            "flow.layers": 32, "flow.hidden": 512, "flow.margin": 0.0, "flow.warmup": 0.01, "width": 128, "blocks": 4,
            "batch_size": 64, "lr": 1e-3, "energy_lr": 1e-4,
        },
        "svhn": {
            "flow.layers": 32, "flow.hidden": 512, "flow.margin": 0.0, "flow.warmup": 0.01, "width": 128, "blocks": 4,
            "batch_size": 64, "lr": 1e-3, "energy_lr": 1e-4,
        },
    }  # fmt: skip

    started: Tensor

    scored: Literal["flow", "energy"] = option("flow", "whose density log_prob gives: flow or energy")
    flow: Any = option(
        slot("glow", layers=6, scales=3, hidden=64),
        "that the energy plays against",
        needs=Need(
            "a flow that draws examples together with their exact density in one pass, and has that of any example",
            methods=("draw", "_point_log_prob"), sampling="direct", without=("draws", "chooses"),
        ),
    )  # fmt: skip
    first_stage: float = option(0.6, "share of the budget for the flow alone", least=0, most=1)
    energy_steps: int = option(2, "steps of the energy for one of the flow", least=1)
    score_samples: int = option(16, "points in each cell when discrete examples are scored", least=1)
    fill_steps = 50
    lr = 5e-3
    energy_lr: float = option(
        1e-3, "learning rate of the energy", above=0, tune=(1e-5, 1e-1), log=True, section="optimizers"
    )

    def build(self) -> None:
        super().build()
        self.flow = self.fill("flow", self.space, lr=self.lr, score_samples=self.score_samples)
        self.energy = NormalisedEnergy(self.energy_net())
        self.density = Density.ESTIMATE if self.scored == "energy" else self.flow.density
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @property
    def density_note(self) -> str:
        return f"of the {self.scored}"

    temperature = temperature_of("flow")

    # --- training -------------------------------------------------------------------------------

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        if progress < self.first_stage:
            yield from self.flow.updates(batch, progress / self.first_stage)
        else:
            yield from self._contrast(batch)

    def _contrast(self, batch: Batch) -> Iterator[Update]:
        """Steps of the energy, which maximise the value of Eq. 10, and one of the flow, which minimises it."""
        y, condition = dequantise(batch.x, self.space), batch.condition
        if not self.started:
            self._start(condition)
        for _ in range(self.energy_steps):
            value, stats = self.value(y, condition, flow_learns=False)
            yield Update(self.energy, -value, stats)
        value, stats = self.value(y, condition, flow_learns=True)
        yield Update(self.flow, value, stats)

    def value(self, y: Tensor, condition: Tensor | None, flow_learns: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 10 of dequantised data and as many samples, and the mean of u on both."""
        with torch.set_grad_enabled(flow_learns):
            log_q = self.flow._point_log_prob(y, condition)
            drawn, log_q_drawn = self.flow.draw(len(y), condition)
        on_data = self.energy(y, condition) - log_q
        on_drawn = self.energy(drawn, condition) - log_q_drawn
        stats = {"ratio_data": on_data.mean().detach(), "ratio_samples": on_drawn.mean().detach()}
        return -logistic_discriminator(on_data, on_drawn), stats

    @torch.no_grad()
    def _start(self, condition: Tensor | None) -> None:
        """c so that the two agree on the flow's samples, or the energy would first have to find hundreds of nats."""
        drawn, log_q = self.flow.draw(START if condition is None else len(condition), condition)
        gap = (self.energy(drawn, condition) - log_q).mean()
        if distributed.is_initialized():  # all ranks start alike
            distributed.all_reduce(gap)
            gap /= distributed.get_world_size()
        self.energy.constant.add_(gap)
        self.started.fill_(True)

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """The flow's own, and Adam for the energy."""
        # the schedule's factor is one for both, and SECOND_RATE while the energy learns
        energy = torch.optim.Adam(self.energy.parameters(), self.energy_lr / SECOND_RATE, (0.5, 0.999), fused=True)
        return {**self.flow.optimizers(), self.energy: energy}

    def learning_rate(self, progress: float) -> float:
        """The flow's cosine, never below SECOND_RATE; then that, with a fall to a tenth over the last half."""
        if progress < self.first_stage:
            return max(SECOND_RATE, self.flow.learning_rate(progress / self.first_stage))
        return SECOND_RATE * late_fall(second_stage(progress, self.first_stage))

    # --- densities ------------------------------------------------------------------------------

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.scored == "flow":
            return self.flow._log_prob(x, condition)
        value, error = dequantised_log_prob(self.energy, x, condition, self.space, self.score_samples)
        log_z, log_z_error = self.log_normaliser(condition)
        return value - log_z, (error.square() + log_z_error.square()).sqrt()

    def log_normaliser(self, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """ln of the integral of exp(f - c), 0 where c is right: nats and standard error, `(1,)` or of each condition.

        By importance sampling with the flow: the mean of p / q over its samples.
        """
        return by_condition(self._log_mean_ratio, condition)

    def _log_mean_ratio(self, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        given = None if condition is None else condition.expand(DRAWS, *condition.shape[1:])
        drawn, log_q = self.flow.draw(DRAWS, given)
        return log_mean_exp((self.energy(drawn, given) - log_q).double().unsqueeze(1))

    # --- samples and codes: the flow's ------------------------------------------------------------

    @property
    def filling(self) -> str:
        return f"by the flow: {self.flow.filling}"

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        self.flow.fill_steps = self.fill_steps
        return self.flow._fill(x, known, condition)

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return self.flow._sample(n, condition)

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.flow._encode(x, condition)

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return self.flow._decode(z, condition)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """How often the energy tells data from samples, and how far its normaliser is from 1, in nats."""
        y = dequantise(batch.x, self.space)
        drawn, log_q = self.flow.draw(len(y), batch.condition)
        on_data = self.energy(y, batch.condition) - self.flow._point_log_prob(y, batch.condition)
        on_drawn = self.energy(drawn, batch.condition) - log_q
        right = torch.cat([on_data > 0, on_drawn < 0]).float().mean()
        return {"told_apart": right.item(), "log_normaliser": log_mean_exp(on_drawn.unsqueeze(1))[0].item()}


class NormalisedEnergy(nn.Module):
    """ln p(x) = f(x) - c, c a parameter like others; `net` is f, `(B, *shape)` and a condition to `(B,)`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.constant = net, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.net(x, condition) - self.constant
