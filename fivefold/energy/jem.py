"""Joint energies: a classifier whose logits are energies too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.energy._system import PointSystem
from fivefold.errors import Unfit
from fivefold.options import option, slot
from fivefold.system import Batch, Update
from fivefold.tools.roc import calibration_error


class JEM(PointSystem):
    """Joint energy-based model (survey 2.2; Grathwohl et al., 2020).

    The logits f(x)[y] of a classifier are energies of x and y together, p(x, y) = exp(f(x)[y]) / Z (survey Eq. 5). So
    p(y|x) is the usual softmax, and -logsumexp_y f(x)[y] an energy of x, which learns like any other beside the
    classification. Samples of a class go down -f(x)[y]. What a class has in common need be learnt once, and the
    classifier is better calibrated, for it knows where no data are.

    It needs a label to have classes (`--condition label`); without one it has a single logit, a plain energy.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"clip": 10.0}}

    objective: Any = slot("contrastive-divergence", restart="data", buffer_size=2048)
    reference = 1.0
    classification: float = option(30.0, "weight of the classifier's loss beside the energy's", least=0)

    def build(self) -> None:
        label = self.space.condition
        if label is not None and not (label.dims == 1 and label.columns and label.columns[0].kind == "categorical"):
            raise Unfit(f"JEM takes one label as its condition, not {label.describe()}")
        super().build()

    def make_energy(self) -> nn.Module:
        """The classifier: of examples alone to a logit of every class."""
        label = self.space.condition
        classes = (label.dim_levels[0] or 1) if label else 1
        return self.energy_net(outputs=classes, space=self.space.conditioned_on(None))

    def logits(self, x: Tensor) -> Tensor:
        """f(x) `(B, classes)` of centred examples."""
        return self.energy(x).view(len(x), -1)

    def energies(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """-f(x)[y], and of no label -logsumexp over all."""
        logits = self.logits(x)
        return -logits.logsumexp(1) if condition is None else -logits.gather(1, condition.long()).squeeze(1)

    def classify(self, x: Tensor) -> Tensor:
        """ln p(y|x) `(B, classes)` of encoded examples."""
        return self.logits(self.enter(x)).log_softmax(1)

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        """p(x) by the objective, and p(y|x) by the classifier's loss, in one step."""
        for update in super().updates(Batch(batch.x), progress):
            if batch.condition is None or update.player is not self.energy:
                yield update
                continue
            missed = F.cross_entropy(self.logits(self.data(batch.x)), batch.condition.long().squeeze(1))
            stats = {**update.stats, "cross_entropy": missed.detach()}
            yield Update(self.energy, update.loss + self.classification * missed, stats)

    def sample_start(self, n: int, condition: Tensor | None) -> Tensor:
        """Chains of training that the classifier takes for the class: they move without one."""
        buffer = getattr(self.learner, "buffer", None)
        if condition is None or self.start == "noise" or buffer is None or not (buffer.ages > 0).any():
            return super().sample_start(n, None)
        chains = buffer.chains[buffer.ages > 0]
        chance = self.logits(chains).softmax(1)[:, condition.long().squeeze(1)].T
        return chains[torch.multinomial(chance + 1e-20, 1).squeeze(1)]

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Also the classifier's accuracy and its calibration error."""
        found = super().monitor(Batch(batch.x))
        if batch.condition is None:
            return found
        log_p, label = self.classify(batch.x), batch.condition.long().squeeze(1)
        accuracy = (log_p.argmax(1) == label).float().mean().item()
        return {**found, "accuracy": accuracy, "calibration_error": calibration_error(log_p.exp(), label).item()}
