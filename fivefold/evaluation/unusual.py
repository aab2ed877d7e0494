"""How unusual examples are to a system with a density, and which cells of a table make them so."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fivefold.data import Split
from fivefold.errors import DataError
from fivefold.space import Batch
from fivefold.system import System

REFERENCE = 2000  # examples that say what is typical, at most ...
FEWEST = (
    10  # ... and at least in the validation split, or else the training split's, which are more probable, are taken
)
DRAWS = 9  # values that a cell is replaced by: odd, so that the median is one of them
MEASURES = ("density", "typicality")


class Typical(NamedTuple):
    """Mean and standard deviation of -log p in nats over `examples` examples of a split, and what the split is."""

    mean: float
    deviation: float
    examples: int
    split: str


def typical(system: System, train: Split, valid: Split) -> Typical:
    """What -log p is of examples of the training law: of validation examples, of training ones where those are few.

    Raises DataError where it does not vary, so that no distance is unusual.
    """
    split, name = (valid, "validation") if len(valid) >= FEWEST else (train, "training")
    values = -system.score_encoded(split.spread(REFERENCE)).log_prob
    values = values[values.isfinite()]
    if len(values) < 2 or float(values.std()) == 0:
        raise DataError(f"-log p does not vary over the {name} split: nothing is typical; rank by density instead")
    return Typical(float(values.mean()), float(values.std()), len(values), name)


def unusual(log_prob: Tensor, like: Typical | None = None) -> Tensor:
    """How unusual examples of these nats `(B,)` are: the more, the larger; infinite where there is no number.

    By density it is -log p in nats. By typicality it is how far -log p lies from its mean over `like`, either way, in
    standard deviations (the test of typicality by Nalisnick, Matsukawa, Teh and Lakshminarayanan, 2019,
    https://arxiv.org/abs/1906.02994, of one example at a time): what is too probable is not typical either.
    """
    far = -log_prob if like is None else (-log_prob - like.mean).abs() / like.deviation
    return far.nan_to_num(torch.inf, posinf=torch.inf, neginf=-torch.inf)


def contributions(system: System, rows: Batch, train: Split, like: Typical | None = None, draws: int = DRAWS) -> Tensor:
    """By how much each cell of a table makes its row unusual, `(B, D)`, in the units of `unusual`.

    It is how much less unusual the row is with that cell replaced by others of its column: the median over `draws`
    training examples, evenly spread. It holds for every system with a density, and costs B D draws evaluations. Of a
    value that does not go with another (a child's age, a pension) either cell may be named.

    Args:
        rows: encoded examples `(B, D)`.
        train: of the training split, whose values replace.
        like: what is typical; None measures by density.
    """

    def measured(x: Tensor, times: int) -> Tensor:
        condition = None if rows.condition is None else rows.condition.repeat_interleave(times, 0)
        return unusual(system.score_encoded(Batch(x, condition)).log_prob, like)

    others = train.spread(draws).x
    now, found = measured(rows.x, 1), []
    for column in range(rows.x.shape[1]):
        x = rows.x.repeat_interleave(len(others), 0)
        x[:, column] = others[:, column].repeat(len(rows.x))
        found.append(now - measured(x, len(others)).view(-1, len(others)).median(1).values)
    return torch.stack(found, 1).nan_to_num(0.0, posinf=torch.inf)  # as impossible as before: nothing is gained
