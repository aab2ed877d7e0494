"""Probability density distillation: an inverse autoregressive flow learns from an autoregressive teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold import catalog
from fivefold.bijections.autoregressive import MaskedAutoregressive
from fivefold.bijections.base import Chain, Inverse
from fivefold.bijections.linear import ActNorm
from fivefold.bijections.shape import Flatten
from fivefold.bijections.transforms import Affine
from fivefold.errors import Unfit
from fivefold.flow._system import FlowSystem
from fivefold.nets.norm import frozen
from fivefold.space import Batch, Column, Space
from fivefold.system import Density, LatentSystem, System, Update
from fivefold.tools.distributions import standard_normal_log_prob
from fivefold.tools.scaling import dequantise
from fivefold.tools.schedule import second_stage

CONDITION_WIDTH = 32


class DistilledFlow(LatentSystem):
    """Distilled flow (survey 6.1.4; van den Oord et al., 2018).

    First an autoregressive teacher is trained on real values (of discrete data, with uniform noise added). Then it
    stays as it is, and an inverse autoregressive flow, the student, learns to draw what the teacher finds likely: with
    its own samples alone it minimises the divergence D(student || teacher) (survey Eq. 35), so that neither model is
    ever run dimension by dimension; of the data it takes each dimension's mean and deviation to start with. Samples
    take one pass; the student's density goes dimension by dimension.

    Args:
        space: of the examples.
        teacher: by id: any system that is autoregressive and has an exact density of real values.
        first_stage: share of the budget for the teacher.
        steps: autoregressive maps of the student, the order of the dimensions reversed in between.
        hidden: units of the two masked layers of each.
        draws: samples of the student for each example of a batch.
        margin: how far the logit of discrete images keeps from 0 and 1, behind which the student is; 0 for no logit.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    free_form: ClassVar[bool] = False
    sampling: ClassVar[str] = "direct"
    density_note = "of the student"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.7, 0.85, 1.0)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.99, "clip": 100.0}}

    def __init__(
        self,
        space: Space,
        *,
        teacher: str = "made",
        first_stage: float = 0.5,
        steps: int = 4,
        hidden: int = 256,
        draws: int = 1,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(space)
        self.first_stage, self.draws = first_stage, draws
        self.teacher = build_teacher(teacher, space)
        self.student = _Student(space, steps, hidden, margin, score_samples, temperature)
        self.density = self.student.density

    @property
    def temperature(self) -> float:
        """The standard deviation of the student's noise."""
        return self.student.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.student.temperature = value

    # --- training -------------------------------------------------------------------------------

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        if progress < self.first_stage:
            real = Batch(dequantise(batch.x, self.space), batch.condition)
            yield from self.teacher.updates(real, progress / self.first_stage)
        else:
            self.student.start(dequantise(batch.x, self.space))
            yield Update(self.student, self.divergence(len(batch.x), batch.condition))

    def divergence(self, n: int, condition: Tensor | None) -> Tensor:
        """D(student || teacher) in nats by `draws` times n samples, `condition` having n rows (survey Eq. 35)."""
        if condition is not None:
            condition = condition.repeat(self.draws, *[1] * (condition.dim() - 1))
        y, log_student = self.student.draw(self.draws * n, condition)
        return (log_student - self.log_teacher(y, condition)).mean()

    def log_teacher(self, y: Tensor, condition: Tensor | None) -> Tensor:
        """The teacher's log-density of real examples `(B, *shape)`, nats `(B,)`; its weights are constants."""
        with frozen(self.teacher):
            value = self.teacher._log_prob(y, condition)
        return value[0] if isinstance(value, tuple) else value  # exact: the standard error is 0

    def optimizers(self, lr: float = 5e-3, weight_decay: float = 1e-4) -> dict[nn.Module, torch.optim.Optimizer]:
        """AdamW for the student; the teacher brings its own.

        Args:
            lr: learning rate of the student at the start.
            weight_decay: of the student, decoupled.
        """
        return {**self.student.optimizers(lr, weight_decay), **self.teacher.optimizers()}

    def learning_rate(self, progress: float) -> float:
        """Each stage by its own clock."""
        if progress < self.first_stage:
            return self.teacher.learning_rate(progress / self.first_stage)
        return self.student.learning_rate(second_stage(progress, self.first_stage))

    def networks(self) -> list[nn.Module]:
        return [*self.teacher.networks(), *self.student.networks()]

    # --- density, samples and codes: the student's -----------------------------------------------

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.student._log_prob(x, condition)

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return self.student._sample(n, condition)

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.student._encode(x, condition)

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return self.student._decode(z, condition)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """The divergence that the student minimises, and what the teacher has learnt: nats of real-valued examples."""
        real = dequantise(batch.x, self.space)
        return {
            "divergence": self.divergence(len(batch.x), batch.condition).item(),
            "teacher_nats": -self.log_teacher(real, batch.condition).mean().item(),
        }


class _Student(FlowSystem):
    """An inverse autoregressive flow (Kingma et al., 2016): all of a sample at once, y_i = h(z_i; parameters(z_<i))."""

    densities: ClassVar[dict[str, Density]] = DistilledFlow.densities

    def __init__(
        self, space: Space, steps: int, hidden: int, margin: float, score_samples: int, temperature: float
    ) -> None:
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature)
        width = self.embedding.width
        self.flow = Chain(
            self._onto_line(Chain(Flatten(space.shape), ActNorm(space.dims)), margin),
            *[Inverse(MaskedAutoregressive(space.dims, Affine(), hidden, width, i % 2 == 1)) for i in range(steps)],
        )

    @torch.no_grad()
    def start(self, y: Tensor) -> None:
        """In training, the first time: the mean and deviation of samples are those of real-valued examples."""
        assert isinstance(self.flow, Chain)
        self.flow.parts[0](y)

    def draw(self, n: int, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Real-valued samples by reparameterisation and their log-densities: `(n, *shape)`, nats `(n,)`."""
        z = torch.randn(n, self.space.dims, device=self.device)
        y, log_det = self.flow.inverse(z, self.embedding(condition))
        return y, standard_normal_log_prob(z) - log_det


def real_valued(space: Space) -> Space:
    """The space of `dequantise`'s results."""
    if space.columns:
        columns = tuple(Column(column.name) for column in space.columns)
        return Space("table", space.shape, columns=columns, condition=space.condition)
    return Space(space.kind, space.shape, dtype="float32", condition=space.condition)


def build_teacher(name: str, space: Space) -> System:
    """The system of that name on real values; `Unfit` if it has no exact autoregressive density of them."""
    system = catalog.find(name).load()
    teacher = catalog.build(name, real_valued(space)) if system.sampling == "autoregressive" else None
    if teacher is None or teacher.density is not Density.EXACT:
        fits = [
            entry.id
            for entry in catalog.entries().values()
            if entry.sampling == "autoregressive"
            and (entry.densities.get(space.kind) == "exact" or (entry.family == "normalizing flow"))
        ]
        needs = "it needs an autoregressive system with an exact density of real values"
        raise Unfit(f"{name} cannot be the teacher: {needs}. These fit: {', '.join(fits)}")
    return teacher
