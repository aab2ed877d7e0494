"""The contract of the parts of a flow, and their composition (survey Eq. 29, 30, 39)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, get_args

from torch import Tensor, nn

Map = Literal["exact", "iterative", "drawn"]  # how an image is found: by a formula, to a tolerance, or at random
LogDet = Literal["exact", "estimated", "truncated"]  # estimated: at random, its mean the exact one; truncated: at
# random too, and its mean is off by no more than the layer's documentation says


class Exactness(NamedTuple):
    """What a layer can do: how each direction's image is found, and its log-determinant.

    Where `inverse` alone draws (a surjection from data to noise) the term is exact. Where `forward` draws z, what is
    exact is a mean: E p(z) exp(term) = p(x). So ln p(z) + term is a lower bound in expectation, which the logarithm
    of a mean over several draws tightens (Nielsen et al., 2020).
    """

    forward: Map = "exact"
    inverse: Map = "exact"
    log_det: LogDet = "exact"


class Layer(nn.Module, ABC):
    """A part of a flow: a map of examples, possibly given a condition, that says what it adds to ln p.

    ln p(x) = ln p(z) + term, z and the term being what `forward` gives (survey Eq. 39). Layers that lose something,
    or draw at random, say in what sense the sum of both is a bound.
    """

    @property
    def exactness(self) -> Exactness:
        """How its directions are found."""
        return Exactness()

    @abstractmethod
    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data towards noise; the term `(B,)` in nats."""

    @abstractmethod
    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise towards data; minus the term `(B,)` that the way back adds."""


class Bijection(Layer):
    """An invertible, differentiable map of examples, possibly given a condition.

    Both directions return the image and ln |det Jacobian| `(B,)` in nats of that direction, so the
    log-determinant of `inverse` at y is minus that of `forward` at the same pair.
    """


class Chain(Layer):
    """One layer after another; their terms add (survey Eq. 30).

    Args:
        parts: in the order in which `forward` applies them.
    """

    def __init__(self, *parts: Layer) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    @property
    def exactness(self) -> Exactness:
        return weakest(*self.parts)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        terms = [] if self.parts else [x.new_zeros(len(x))]
        for part in self.parts:
            x, term = part(x, condition)
            terms.append(term)
        return x, total(terms)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        terms = [] if self.parts else [y.new_zeros(len(y))]
        for part in reversed(self.parts):
            y, term = part.inverse(y, condition)  # type: ignore[operator]
            terms.append(term)
        return y, total(terms)


class Inverse(Layer):
    """A layer with its directions exchanged: of an autoregressive flow it makes an inverse autoregressive one.

    Of a surjection from data to noise it makes the one from noise to data: what was exact becomes a bound.

    Args:
        part: what is exchanged.
    """

    def __init__(self, part: Layer) -> None:
        super().__init__()
        self.part = part

    @property
    def exactness(self) -> Exactness:
        forward, inverse, log_det = self.part.exactness
        return Exactness(inverse, forward, log_det)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.part.inverse(x, condition)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.part(y, condition)


def weakest(*layers: Layer) -> Exactness:
    """What can be said of several layers one after another."""
    facts = [Exactness(), *[layer.exactness for layer in layers]]
    return Exactness(
        max((fact.forward for fact in facts), key=get_args(Map).index),
        max((fact.inverse for fact in facts), key=get_args(Map).index),
        max((fact.log_det for fact in facts), key=get_args(LogDet).index),
    )


def total(terms: list[Tensor]) -> Tensor:
    """The sum of what each layer adds; of one at least."""
    return sum(terms[1:], start=terms[0])


def sum_dims(values: Tensor) -> Tensor:
    """Sum over all but the first dimension: `(B, ...)` to `(B,)`."""
    return values.flatten(1).sum(1)
