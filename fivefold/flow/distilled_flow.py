"""Probability density distillation: an inverse autoregressive flow learns from an autoregressive teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from fivefold.flow._system import FlowSystem
from fivefold.nets.norm import frozen
from fivefold.options import Need, option, slot
from fivefold.space import Batch, Column, Space
from fivefold.system import Density, LatentSystem, System, Update, temperature_of
from fivefold.tools.scaling import dequantise
from fivefold.tools.schedule import second_stage

CONDITION_WIDTH = 32


class DistilledFlow(LatentSystem):
    """Distilled flow (survey 6.1.4; van den Oord et al., 2018).

    First an autoregressive teacher is trained on real values (of discrete data, with uniform noise added). Then it
    stays as it is, and an inverse autoregressive flow, the student, learns to draw what the teacher finds likely: with
    its own samples alone it minimises the divergence D(student || teacher) (survey Eq. 35), so that neither model is
    run dimension by dimension but once: of the data it takes each dimension's mean and deviation to start with. Samples
    take one pass; the student's density goes dimension by dimension.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    free_form: ClassVar[bool] = False
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.7, 0.85, 1.0)}
    presets = {"default": {"ema": 0.99, "clip": 100.0}}

    lr = 5e-3
    teacher: System = option(
        slot("made"), "what the student learns from", needs=Need(
            "an exact density of real values, dimension by dimension", densities=("EXACT",), sampling="autoregressive"
        ),
    )  # fmt: skip
    student: FlowSystem = option(
        slot("iaf-flow", layers=4, hidden=256), "the flow that is kept", needs=Need(
            "a flow that draws examples together with their exact density in one pass", methods=("draw",),
            sampling="direct", without=("draws", "chooses"),
        ),
    )  # fmt: skip
    first_stage: float = option(0.5, "share of the budget for the teacher", above=0, below=1, tune=(0.2, 0.8))
    draws: int = option(1, "samples of the student for each example of a batch", least=1)
    started: Tensor

    @classmethod
    def density_on(cls, space: Space) -> Density | None:
        is_real = all(levels is None for levels in space.dim_levels)
        return None if space.kind not in cls.densities else Density.EXACT if is_real else Density.LOWER_BOUND

    def build(self) -> None:
        self.teacher = self.fill("teacher", real_valued(self.space))
        self.student = self.fill("student", self.space, lr=self.lr)
        self.density = self.student.density
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    temperature = temperature_of("student")

    @property
    def density_note(self) -> str:
        return "of the student"

    # --- training -------------------------------------------------------------------------------

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        if progress < self.first_stage:
            real = Batch(dequantise(batch.x, self.space), batch.condition)
            yield from self.teacher.updates(real, progress / self.first_stage)
        else:
            if not self.started:
                self._start(batch)
            yield Update(self.student, self.divergence(len(batch.x), batch.condition))

    @torch.no_grad()
    def _start(self, batch: Batch) -> None:
        """The mean and deviation of samples are those of real-valued examples, by the student's actnorms."""
        self.student.flow(dequantise(batch.x, self.space), self.student.embedding(batch.condition))
        self.started.fill_(True)

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

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """Each brings its own; the student has the learning rate of the whole unless it is given one."""
        return {**self.student.optimizers(), **self.teacher.optimizers()}

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


def real_valued(space: Space) -> Space:
    """The space of `dequantise`'s results."""
    if space.columns:
        columns = tuple(Column(column.name) for column in space.columns)
        return Space("table", space.shape, columns=columns, condition=space.condition)
    return Space(space.kind, space.shape, dtype="float32", condition=space.condition)
