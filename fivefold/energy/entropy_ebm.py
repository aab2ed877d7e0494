"""Energies with an amortised sampler: a generator that is trained with its entropy, and no chain at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.energy._system import PointSystem
from fivefold.nets.adversarial import generator_net
from fivefold.options import fixed, option, width_option
from fivefold.system import Batch, Update
from fivefold.tools.distributions import standard_normal_log_prob
from fivefold.tools.games import duplicate_rate, r1_penalty
from fivefold.tools.schedule import late_fall

USUAL = {"image": (32, 0.1), "table": (4, 0.2)}  # width of codes, deviation of the noise


class EntropyEBM(PointSystem):
    """Entropy-regularised energy (survey 2.2; Grathwohl et al., 2021; Kumar et al., 2019).

    A generator x = g(z) + deviation e takes the place of chains. The energy falls on data and rises on its examples;
    it goes down E(x) - H, H its entropy, at best draws from exp(-E) and makes the bound on ln Z tight. The entropy's
    gradient needs the score of the generator's own law, d ln q(x) / dx = E[(g(z) - x) / deviation^2] over the codes
    that could have made x: importance sampling around the code that did, with widths that are learnt (VERA).

    Samples are the generator's; `sample_steps` refines them by chains of the energy. A second stage is not needed.
    """

    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sample_steps": (0, 10, 30, 60)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.99, "clip": 10.0}}
    least_batch: ClassVar[int] = 64

    objective: Any = fixed(None)
    latent: int = option(0, "width of codes; 0 for the usual one, 32 of images and 4 of tables", least=0)
    generator_width: int = width_option(32, "of the generator's largest features", tune=(8, 256))
    deviation: float = option(
        0.0, "of the noise on the generator's examples; 0 for the usual one, 0.1 of images and 0.2 of tables", least=0
    )
    codes: int = option(16, "codes that could have made an example, for the score of the generator's law", least=1)
    entropy: float = option(1.0, "weight of the entropy; 1 is the energy's own law", least=0)
    penalty: float = option(0.03, "weight of the energy's squared slope on data", least=0)
    sample_steps = 0
    beta1 = 0.5

    def build(self) -> None:
        super().build()
        latent, deviation = USUAL[self.space.kind]
        self.latent, self.deviation = self.latent or latent, self.deviation or deviation
        self.generator = Generator(
            generator_net(self.space, self.latent, self.generator_width, False), self.latent, self.deviation, self.codes
        )

    # --- training ---------------------------------------------------------------------------------

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        data, condition = self.data(batch.x).requires_grad_(), batch.condition
        with torch.no_grad():
            made = self.propose(len(data), condition)
        on_data = self.nats(data, condition)
        gap = on_data.mean() - self.nats(made, condition).mean()
        loss = gap + self.penalty / 2 * r1_penalty(on_data, data)
        yield Update(self.energy, loss, {"gap": gap.detach()})
        z = torch.randn(len(data), self.latent, device=data.device)
        made = self.generator.draw(z, condition)
        score, log_q = self.generator.score(made.detach(), z, condition)
        negative_entropy = (made * score.detach()).flatten(1).sum(1).mean()  # its gradient is right, not its value
        fit = -log_q.mean()  # of the proposals' widths alone
        loss = self.nats(made, condition).mean() + self.entropy * negative_entropy + fit
        yield Update(self.generator, loss, {"entropy": fit.detach()})

    def propose(self, n: int, condition: Tensor | None) -> Tensor:
        """The generator's examples `(n, *shape)`, centred."""
        return self.generator.draw(torch.randn(n, self.latent, device=self.device), condition)

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """Adam for both players."""
        generator = torch.optim.Adam(self.generator.parameters(), self.lr, (self.beta1, 0.999), fused=True)
        return {**super().optimizers(), self.generator: generator}

    def learning_rate(self, progress: float) -> float:
        """Constant, with a fall over the last half: then the players follow each other more closely."""
        return late_fall(progress)

    # --- samples ----------------------------------------------------------------------------------

    def sample_start(self, n: int, condition: Tensor | None) -> Tensor:
        """Without the noise where nothing smooths it."""
        z = torch.randn(n, self.latent, device=self.device)
        return self.generator.draw(z, condition) if self.sample_steps else self.generator.net(z, condition)

    @property
    def sample_evaluations(self) -> int:
        return super().sample_evaluations + 1

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Energies of data and of what is generated, in nats, the generator's entropy and its near-duplicates."""
        data, z = self.enter(batch.x), torch.randn(len(batch.x), self.latent, device=self.device)
        made = self.generator.draw(z, batch.condition)
        return {
            "energy_data": self.nats(data, batch.condition).mean().item(),
            "energy_generated": self.nats(made, batch.condition).mean().item(),
            "entropy": -self.generator.score(made, z, batch.condition)[1].mean().item(),
            "duplicates": duplicate_rate(made, data).item(),
            **self.mixing,
        }


class Generator(nn.Module):
    """x = g(z) + deviation e, and what is known of its law.

    Args:
        net: g, of codes `(B, latent)` and a condition.
        latent: width of the codes.
        deviation: of the noise.
        codes: how many are weighed for the score.
    """

    def __init__(self, net: nn.Module, latent: int, deviation: float, codes: int) -> None:
        super().__init__()
        self.net, self.deviation, self.codes = net, deviation, codes
        self.log_width = nn.Parameter(torch.full((latent,), math.log(deviation)))  # of proposals around a code

    def draw(self, z: Tensor, condition: Tensor | None) -> Tensor:
        x = self.net(z, condition)
        return x + self.deviation * torch.randn_like(x)

    def score(self, x: Tensor, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """d ln q(x) / dx `(B, *shape)`, and an estimate of ln q(x), nats `(B,)`, low in expectation.

        By importance sampling: codes from a Gaussian around the one that made x, weighed by p(z) q(x|z). The estimate's
        gradient reaches the Gaussian's widths alone.

        Args:
            x: examples.
            z: the codes that made them.
            condition: theirs.
        """
        width = self.log_width.exp()
        near = z + width * torch.randn(self.codes, *z.shape, device=z.device)
        log_proposal = -0.5 * ((near - z) / width).square().sum(2) - self.log_width.sum() - self._constant(z.shape[1])
        given = None if condition is None else condition.repeat(self.codes, *[1] * (condition.dim() - 1))
        frozen = {name: p.detach() for name, p in self.net.named_parameters()}
        made = torch.func.functional_call(self.net, frozen, (near.flatten(0, 1), given)).view(self.codes, *x.shape)
        gap = (made - x).flatten(2)
        log_made = -0.5 * (gap / self.deviation).square().sum(2)
        log_made = log_made - gap.shape[2] * math.log(self.deviation) - self._constant(gap.shape[2])
        prior = standard_normal_log_prob(near.flatten(0, 1)).view(self.codes, -1)
        log_weight = prior + log_made - log_proposal
        weight = log_weight.softmax(0).detach()
        score = (weight[..., None] * gap.detach()).sum(0) / self.deviation**2
        return score.view_as(x), log_weight.logsumexp(0) - math.log(self.codes)

    @staticmethod
    def _constant(dims: int) -> float:
        return 0.5 * dims * math.log(2 * math.pi)
