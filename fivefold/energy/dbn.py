"""Deep belief networks: restricted Boltzmann machines on top of each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.energy._boltzmann import hidden_units
from fivefold.energy.rbm import RBM
from fivefold.nets.visible import bernoulli
from fivefold.options import Need, depth_option, option, slot
from fivefold.system import Batch, Density, System, Update
from fivefold.tools.scaling import importance_log_prob


class DBN(System):
    """Deep belief network (survey 2.1.2; Hinton et al., 2006).

    Restricted Boltzmann machines are trained one after another, each on hidden units of the one below. Samples are
    drawn from the one on top, whose units are then passed down through the others.

    p(v, h1, h2, ...) = p(v | h1) p(h1 | h2) ... p(top), the last a restricted Boltzmann machine, and inference is
    upwards, q(h1 | v) the posterior of the first machine by itself. Each machine models what the one below would take
    its hidden units to be, so that the bound E_q[ln p(v | h1) + ln p(h1) - ln q(h1 | v)] rises with every layer that
    models them better. Where a machine has as many hidden units as the visible ones below stand for (binary ones, of
    more levels one for each step) it starts upside down as the machine below, where the bound is tight.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.LOWER_BOUND}
    sampling: ClassVar[str] = "mcmc"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.99}}

    layers: int = depth_option(2, "restricted Boltzmann machines", tune=(1, 4))
    rbm: Any = option(
        slot("rbm", hidden=256),
        "of every layer",
        needs=Need(
            "a restricted Boltzmann machine", methods=("hidden_input", "visible_input", "free_energy"), sampling="mcmc"
        ),
    )
    score_samples: int = option(64, "draws of the hidden units for the bound, which tightens with them", least=1)
    lr = 0.1

    started: Tensor

    def build(self) -> None:
        super().build()
        found: list[RBM] = []
        for _ in range(self.layers):
            space = hidden_units(self.space, found[-1].hidden) if found else self.space
            found.append(self.fill("rbm", space, lr=self.lr))
        self.rbms = nn.ModuleList(found)
        self.register_buffer("started", torch.tensor(1))  # layers that are trained, or in training

    @property
    def density_note(self) -> str:
        top = self.stack[-1]
        return f"{self.score_samples} samples; {top.density_note} of the machine on top, its error included"

    @property
    def stack(self) -> list[RBM]:
        """The layers that are in use, the lowest first."""
        return [cast(RBM, rbm) for rbm in self.rbms][: int(self.started)]

    # --- training -------------------------------------------------------------------------------

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        return {player: made for rbm in self.rbms for player, made in rbm.optimizers().items()}  # type: ignore[operator]

    def _stage(self, progress: float) -> tuple[int, float]:
        """Which layer is trained, and the progress of its training."""
        stage = min(int(progress * self.layers), self.layers - 1)
        return stage, progress * self.layers - stage

    def learning_rate(self, progress: float) -> float:
        """Of each layer by its own clock."""
        stage, own = self._stage(progress)
        return self.rbms[stage].learning_rate(own)  # type: ignore[operator]

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        """Layer by layer, each for the same share of the budget."""
        stage, own = self._stage(progress)
        while self.started <= stage:
            turned_over(self.stack[-1], self.rbms[len(self.stack)])  # type: ignore[arg-type]
            self.started += 1
        with torch.no_grad():
            x = self.up(batch.x.flatten(1).float(), batch.condition)[-1]
        yield from self.stack[stage].updates(Batch(x, batch.condition), own)

    # --- the model ------------------------------------------------------------------------------

    def up(self, v: Tensor, condition: Tensor | None) -> list[Tensor]:
        """The visible units of every layer in use, the first of them v: hidden ones drawn upwards."""
        found = [v]
        for rbm in self.stack[:-1]:
            found.append(bernoulli(rbm.hidden_input(found[-1], condition)))
        return found

    def log_ratio(self, v: Tensor, condition: Tensor | None) -> Tensor:
        """ln of p(v, h) / q(h | v) for hidden units drawn from q, nats `(B,)`: its mean is the bound."""
        found = self.up(v, condition)
        value = v.new_zeros(len(v), dtype=torch.float64)
        for rbm, below, above in zip(self.stack, found, found[1:], strict=False):
            logits, natural = rbm.hidden_input(below, condition), rbm.visible_input(above, condition)
            log_q = (above * logits - F.softplus(logits)).sum(1)
            s = rbm.units.statistic(below)
            log_p = rbm.units.log_base(below) + (natural * s).sum(1) - rbm.units.log_normaliser(natural)
            value = value + log_p - log_q
        return value + self.stack[-1]._log_prob(found[-1], condition)[0]

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """ln of the mean of `score_samples` ratios, a bound in expectation; its error and that of the top's ln Z."""
        if len(self.stack) == 1:
            return self.stack[0]._log_prob(x, condition)
        value, error = importance_log_prob(self.log_ratio, x.flatten(1).float(), condition, self.score_samples)
        top = self.stack[-1]
        return value, torch.hypot(error, top.log_z_error[top._condition_index(condition, len(x))])

    # --- samples --------------------------------------------------------------------------------

    @property
    def sample_evaluations(self) -> int:
        return self.stack[-1].sample_evaluations + len(self.stack) - 1

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        """Gibbs sampling in the machine on top, and one pass down."""
        x = self.stack[-1]._sample(n, condition).flatten(1).float()
        for rbm in reversed(self.stack[:-1]):
            x = rbm.units.sample(rbm.visible_input(x, condition))
        return self.stack[0].examples(x)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Of the layer on top."""
        x = self.up(batch.x.flatten(1).float(), batch.condition)[-1]
        return {"layers": float(self.started), **self.stack[-1].monitor(Batch(x, batch.condition))}


@torch.no_grad()
def turned_over(below: RBM, above: RBM) -> None:
    """Give the machine above the law that the one below gives its hidden units, where the shapes allow.

    Its visible units are the hidden ones below, and its hidden ones the visible units below, of more levels as many
    binary units as there are steps. What it has beyond these keeps its weights, which are small.
    """
    copies = below.units.copies()
    if copies is None or copies.shape[1] > above.hidden or below.shift is not None:
        return
    (a, b), used = below.biases(None), copies.shape[1]
    above.weight[:, :used] = below.weight.T @ copies
    above.offset.copy_(b.sigmoid())
    above.mean.copy_(b.sigmoid())
    above.visible_bias.copy_(b + 0.5 * above.centred * above.weight.sum(1))
    above.hidden_bias.copy_(F.pad(a @ copies, (0, above.hidden - used)) + above.centred * (above.offset @ above.weight))
    above.updated.fill_(1)
