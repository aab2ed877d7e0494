"""Cooperative networks: a generator starts the chains of an energy and learns from where they end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.energy._system import PointSystem, twice
from fivefold.nets.adversarial import generator_net
from fivefold.options import fixed, option, width_option
from fivefold.system import Batch, Update
from fivefold.tools.games import duplicate_rate


class CoopNets(PointSystem):
    """Cooperative networks (survey 2.2; Xie et al., 2018).

    A generator proposes examples, Langevin dynamics by the energy revises them, and both learn from the revision: the
    energy by contrastive divergence between data and the revised, the generator by regressing what was revised on the
    codes that it had been proposed with. Chains so start near where the energy wants them, without a buffer, and a
    sample is a proposal and its revision.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"clip": 10.0}}
    least_batch: ClassVar[int] = 64

    objective: Any = fixed(None)
    chain_steps: int = option(20, "Langevin steps that revise a proposal in training", least=1)
    latent: int = option(32, "width of codes", least=1, tune=(2, 128), log=True)
    generator_width: int = width_option(32, "of the generator's largest features", tune=(8, 256))
    generator_rate: float = option(1.0, "learning rate of the generator, as a multiple of the energy's", above=0)
    reference = 1.0
    sample_steps = 20

    def build(self) -> None:
        super().build()
        self.generator = generator_net(self.space, self.latent, self.generator_width, True)

    def propose(self, n: int, condition: Tensor | None) -> Tensor:
        """The generator's examples `(n, *shape)`, centred."""
        return self.generator(torch.randn(n, self.latent, device=self.device), condition)

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        """The energy on data and revisions, the generator on how its own were revised (Xie et al., Algorithm 1)."""
        data, condition = self.data(batch.x), batch.condition
        proposed = self.propose(len(data), condition)
        revised = self.run(proposed.detach(), condition, self.chain_steps)
        yield self.contrast(data, revised, twice(condition))
        missed = (proposed - revised).square().mean()
        yield Update(self.generator, missed, {"revised": missed.detach()})

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """Adam for both players."""
        rate = self.lr * self.generator_rate
        generator = torch.optim.Adam(self.generator.parameters(), rate, (0.5, 0.999), fused=True)
        return {**super().optimizers(), self.generator: generator}

    def sample_start(self, n: int, condition: Tensor | None) -> Tensor:
        return self.propose(n, condition)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Energies of data, proposals and revisions, in nats, beside how the chains mix."""
        proposed = self.propose(len(batch.x), batch.condition)
        revised = self.run(proposed, batch.condition, self.chain_steps)
        named = {"data": self.enter(batch.x), "proposals": proposed, "revised": revised}
        found = {f"energy_{name}": self.nats(x, batch.condition).mean().item() for name, x in named.items()}
        return {**found, "duplicates": duplicate_rate(proposed, named["data"]).item(), **self.mixing}
