"""Probability density distillation: an inverse autoregressive flow learns from an autoregressive teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fivefold.flow._system import FlowSystem
from fivefold.nets.norm import frozen
from fivefold.options import Need, option, slot
from fivefold.space import Batch, Column, Space
from fivefold.system import Density, LatentSystem, System, Update, temperature_of
from fivefold.tools.metrics import kernel_distance
from fivefold.tools.scaling import dequantise
from fivefold.tools.schedule import second_stage

CONDITION_WIDTH = 32


class DistilledFlow(LatentSystem):
    """Distilled flow (survey 6.1.4; van den Oord et al., 2018).

    First an autoregressive teacher is trained on real values (of discrete data, with uniform noise added). Then it
    stays as it is, and an inverse autoregressive flow, the student, learns to draw what the teacher finds likely: it
    minimises the divergence D(student || teacher) of its own samples (survey Eq. 35), for which neither model is run
    dimension by dimension. Samples take one pass; the student's density goes dimension by dimension.

    The divergence alone is least punished where the student draws one kind of example only, so the paper adds terms
    that compare samples with data. Here they are, each with a weight beside the divergence's 1: `power`, `perceptual`
    (its features those of kernels in place of a speech recogniser's) and, given a condition, `contrastive` as in the
    paper; and `likelihood`, of data by the student, for which alone a model runs dimension by dimension in training.
    """

    points: ClassVar[bool] = True
    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    free_form: ClassVar[bool] = False
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.7, 0.85, 1.0)}
    presets = {"default": {"ema": 0.99, "clip": 100.0}}

    fill_steps = 50
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
    first_stage: float = option(0.3, "share of the budget for the teacher", above=0, below=1, tune=(0.2, 0.8))
    draws: int = option(1, "samples of the student for each example of a batch", least=1)
    power: float = option(
        100.0, "weight of the distance of mean powers (of an image's frequencies, of a table's columns)", least=0
    )
    perceptual: float = option(
        300.0, "weight of the distance of samples and data in the features of kernels", least=0, tune=(0.0, 1000.0)
    )
    contrastive: float = option(
        0.3, "weight of minus the divergence from the teacher given another example's condition", least=0, below=1
    )
    likelihood: float = option(
        3.0, "weight of minus the log-likelihood of data by the student, dimension by dimension", least=0,
        tune=(0.0, 10.0),
    )  # fmt: skip
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
            terms = self.terms(batch)
            loss = torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()
            yield Update(self.student, loss, {name: value.detach() for name, value in terms.items()})

    @torch.no_grad()
    def _start(self, batch: Batch) -> None:
        """The mean and deviation of samples are those of real-valued examples, by the student's actnorms."""
        self.student.flow(dequantise(batch.x, self.space), self.student.embedding(batch.condition))
        self.started.fill_(True)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """What the student minimises, before weights; those of weight 0 are left out, and distances of one example."""
        drawn = self._draw(len(batch.x), batch.condition)
        impossible = {"contrastive"} if batch.condition is None else set()
        impossible |= {"power", "perceptual"} if len(batch.x) < 2 else set()
        names = [name for name, weight in self.weights.items() if weight and name not in impossible]
        return {name: TERMS[name](self, drawn, batch) for name in names}

    @property
    def weights(self) -> dict[str, float]:
        """Of the terms."""
        return {"divergence": 1.0} | {name: getattr(self, name) for name in TERMS if name != "divergence"}

    def divergence(self, n: int, condition: Tensor | None) -> Tensor:
        """D(student || teacher) in nats by `draws` times n samples, `condition` having n rows (survey Eq. 35)."""
        return self._divergence(self._draw(n, condition))

    def _draw(self, n: int, condition: Tensor | None) -> Drawn:
        if condition is not None:
            condition = condition.repeat(self.draws, *[1] * (condition.dim() - 1))
        return Drawn(*self.student.draw(self.draws * n, condition), condition)

    def _divergence(self, drawn: Drawn) -> Tensor:
        return (drawn.log_student - self.log_teacher(drawn.samples, drawn.condition)).mean()

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

    @property
    def filling(self) -> str:
        return f"by the student: {self.student.filling}"

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        self.student.fill_steps = self.fill_steps
        return self.student._fill(x, known, condition)

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


class Drawn(NamedTuple):
    """Samples `(n, *shape)` of the student, its log-density of them, nats `(n,)`, and what they were drawn given."""

    samples: Tensor
    log_student: Tensor
    condition: Tensor | None


def contrast(system: DistilledFlow, drawn: Drawn, batch: Batch) -> Tensor:
    """-D(student given one condition || teacher given the next row's), nats: samples should tell their condition."""
    assert drawn.condition is not None
    return -system._divergence(drawn._replace(condition=drawn.condition.roll(1, 0)))


def power_distance(samples: Tensor, real: Tensor) -> Tensor:
    """Squared distance `()` of mean powers of `(n, *shape)` and `(m, *shape)`, relative to that of the data from 0.

    Powers are |DFT|^2 of images at every frequency, and squares of columns. Unbiased, so it can be below 0.
    """
    x, y = (_powers(one).flatten(1) for one in (samples, real))
    return kernel_distance(x @ x.T, x @ y.T, y @ y.T).value / (y @ y.T).mean()


def _powers(x: Tensor) -> Tensor:
    return torch.fft.rfft2(x).abs().square() if x.dim() > 2 else x.square()


WIDTHS = (0.1, 0.25, 0.5, 1.0)  # of kernels, in mean squared distances of data


def perceptual_distance(samples: Tensor, real: Tensor) -> Tensor:
    """Squared distance `()` of mean features of `(n, *shape)` and `(m, *shape)`; unbiased, so it can be below 0.

    The features are infinitely many, those of the kernels 1 / (1 + |x - y|^2 / width): the distance is a maximum mean
    discrepancy, 0 where both have the same law and nowhere else.
    """
    x, y = samples.flatten(1), real.flatten(1)
    xx, xy, yy = (torch.cdist(a, b).square() for a, b in ((x, x), (x, y), (y, y)))
    scale = (yy.sum() / (len(y) * (len(y) - 1))).clamp(min=torch.finfo(yy.dtype).tiny)
    kernels = ([1 / (1 + d / (width * scale)) for d in (xx, xy, yy)] for width in WIDTHS)
    return torch.stack([kernel_distance(*kernel).value for kernel in kernels]).sum()


Term = Callable[[DistilledFlow, Drawn, Batch], Tensor]
TERMS: dict[str, Term] = {
    "divergence": lambda system, drawn, batch: system._divergence(drawn),
    "power": lambda system, drawn, batch: power_distance(drawn.samples, dequantise(batch.x, system.space)),
    "perceptual": lambda system, drawn, batch: perceptual_distance(drawn.samples, dequantise(batch.x, system.space)),
    "contrastive": contrast,
    "likelihood": lambda system, drawn, batch: system.student.loss(batch),
}


def real_valued(space: Space) -> Space:
    """The space of `dequantise`'s results."""
    if space.columns:
        columns = tuple(Column(column.name) for column in space.columns)
        return Space("table", space.shape, columns=columns, condition=space.condition)
    return Space(space.kind, space.shape, dtype="float32", condition=space.condition)
