"""What all flows share: the change of variables or its bound, dequantised where the data are discrete."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.dequantisation import VariationalDequantisation
from fivefold.bijections.elementwise import Logit
from fivefold.bijections.laws import still
from fivefold.nets.condition import ConditionEmbedding
from fivefold.nets.norm import frozen
from fivefold.options import option
from fivefold.space import Batch, Space
from fivefold.system import Density, LatentSystem, log_mean_exp
from fivefold.tools.boxes import Box
from fivefold.tools.distributions import standard_normal_log_prob
from fivefold.tools.given import corner_jump, logistic_jump, random_walk
from fivefold.tools.mcmc import FIRST, Move, hamiltonian
from fivefold.tools.particles import near
from fivefold.tools.scaling import cell, dequantise, dequantise_log_det, importance_log_prob, midpoint, quantise
from fivefold.tools.schedule import warm_cosine

ESTIMATES = 8  # of the density at each step of a random walk
WALK = 10  # steps of a random walk for one of Hamiltonian Monte Carlo, which goes as far
Dequantisation = Literal["uniform", "variational"]


class FlowSystem(LatentSystem):
    """A bijection to standard normal noise: log p(x) = log N(f(x); 0, I) + ln |det df/dx| (survey Eq. 29, 30).

    Discrete dimensions are dequantised, which makes the density a lower bound. Subclasses write `body`, or the `steps`
    of one scale, from encoded (and dequantised) examples `(B, *shape)` to noise `(B, D)`. Where it has surjections
    (survey Eq. 39) noise may have other dimensions (`noise_dims`).
    """

    points: ClassVar[bool] = True
    densities: ClassVar[dict[str, Density]] = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    free_form: ClassVar[bool] = False
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.7, 0.85, 1.0)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.99, "clip": 5.0}}
    condition_width: ClassVar[int] = 32  # of the condition's embedding
    chooses: ClassVar[bool] = False  # whether samples choose at random among several ways back, without a gradient
    draws: ClassVar[bool] = False  # whether a layer draws on the way to noise, which makes the density a bound

    fill_steps = 50
    lr = 5e-3
    weight_decay: float = option(
        1e-4, "decoupled weight decay", least=0, tune=(1e-6, 1.0), log=True, section="optimizers"
    )
    warmup: float = option(
        0.0, "share of the budget over which the learning rate rises; many couplings diverge at once without", least=0,
        most=1, section="optimizers",
    )  # fmt: skip
    margin: float = option(
        0.05, "how far the logit of discrete images keeps from 0 and 1; 0 for no logit, as in most papers", least=0,
        below=0.5,
    )  # fmt: skip
    dequantisation: Dequantisation = option(
        "uniform", "of discrete dimensions: uniform noise in the cells, or variational, by a flow given the example"
    )
    score_samples: int = option(
        16, "draws (of points in the cell of a discrete example, of what layers draw) for each example scored", least=1
    )
    temperature: float = option(1.0, "the standard deviation of the noise that samples are made from", above=0)

    @classmethod
    def density_on(cls, space: Space) -> Density | None:
        if space.kind not in cls.densities:
            return None
        is_real = all(levels is None for levels in space.dim_levels)
        return Density.EXACT if is_real and not cls.draws else Density.LOWER_BOUND

    def build(self) -> None:
        super().build()
        self.embedding = ConditionEmbedding(self.space.condition, self.condition_width)
        self.noise_dims = self.space.dims
        learns = self.dequantisation == "variational" and any(levels is not None for levels in self.space.dim_levels)
        self.cells = VariationalDequantisation(self.space, self.embedding.width) if learns else None
        self.flow: Layer = self._onto_line(self.body())

    @property
    def density_note(self) -> str:
        return f"{self.score_samples} samples" if self.draws else ""

    @abstractmethod
    def body(self) -> Layer:
        """From points on the line `(B, *shape)` to noise `(B, noise_dims)`."""

    @property
    def fills_cube(self) -> bool:
        """Whether dequantised examples fill [-1, 1]^D: those of discrete images do."""
        return self.space.kind == "image" and self.space.levels is not None

    def _onto_line(self, flow: Layer) -> Layer:
        """`flow`, behind a logit where the data fill an interval; none at margin 0."""
        return Chain(Logit(self.margin), flow) if self.fills_cube and self.margin > 0 else flow

    def loss(self, batch: Batch) -> Tensor:
        return -self._drawn_log_prob(batch.x, batch.condition).mean()

    def optimizers(self) -> dict[torch.nn.Module, torch.optim.Optimizer]:
        """AdamW, its rate following a cosine to zero."""
        return {self: torch.optim.AdamW(self.parameters(), self.lr, weight_decay=self.weight_decay, fused=True)}

    def learning_rate(self, progress: float) -> float:
        return warm_cosine(progress, self.warmup, floor=0.0)

    def _point_log_prob(self, y: Tensor, condition: Tensor | None) -> Tensor:
        """Nats `(B,)` of continuous points."""
        z, log_det = self.flow(y, self.embedding(condition))
        return self.noise_log_prob(z) + log_det

    def noise(self, n: int) -> Tensor:
        """Draws `(n, noise_dims)`; standard normal unless a flow says otherwise."""
        return torch.randn(n, self.noise_dims, device=self.device)

    def noise_log_prob(self, z: Tensor) -> Tensor:
        """Nats `(B,)` of what `noise` draws."""
        return standard_normal_log_prob(z)

    def _drawn_log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Nats `(B,)`: ln of an unbiased estimate of P(x), from one draw of all that is drawn."""
        y, term = self._drawn(x, condition)
        return self._point_log_prob(y, condition) + term

    def _drawn(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """A point in the cell of every example, and what it adds to the nats of its density there."""
        if self.cells is None:
            return dequantise(x, self.space), dequantise_log_det(self.space)
        return self.cells(x, self.embedding(condition))

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.density_on(self.space) is Density.EXACT:
            value = self._point_log_prob(x, condition)
            return value, torch.zeros_like(value)
        return importance_log_prob(self._drawn_log_prob, x, condition, self.score_samples)

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return self._decode(self.temperature * self.noise(n), condition)

    def push(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        """Real-valued examples of noise, differentiably."""
        return self.flow.inverse(noise, self.embedding(condition))[0].view(-1, *self.space.shape)

    def draw(self, n: int, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Real-valued examples `(n, *shape)` by reparameterisation and their log-densities, nats `(n,)`."""
        z = self.noise(n)
        y, log_det = self.flow.inverse(z, self.embedding(condition))
        return y, self.noise_log_prob(z) - log_det

    # --- what is missing --------------------------------------------------------------------------

    @property
    def filling(self) -> str:
        cells = ", discrete ones within their cells" if any(n is not None for n in self.space.dim_levels) else ""
        chains = f"over what is missing, by the density with what is known held{cells}"
        if self.draws:
            return f"random walks {chains} and estimated (pseudo-marginal Metropolis): {self._limit}"
        return f"Hamiltonian Monte Carlo {chains}: {self._limit}"

    @property
    def _limit(self) -> str:
        """What the chains tend to."""
        return "exact in the limit of many steps"

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        """Chains of dequantised points, started at samples that are near what is known.

        A known level confines its number to the cell; what is real and known stays. Categories and levels also jump.
        """
        start = torch.where(known, x, near(self._sample, self.space, x, known, condition))
        box, discrete = cell(x, self.space), self._cells_of(x)
        box = Box(torch.where(known | ~discrete, box.low, -1.0), torch.where(known | ~discrete, box.high, 1.0))
        free, jumps = ~known | discrete, (~known & discrete).flatten(1)
        u = box.line(dequantise(start, self.space))
        with frozen(self):
            if self.draws:
                energy = box.energy(lambda y: -self._estimate(y, condition))
                u = random_walk(lambda u: -energy(u), u, WALK * self.fill_steps, WALK * self.fill_steps, free)
            else:
                energy = box.energy(lambda y: -self._point_log_prob(y, condition))

                groups = self.lift.corners if self.lift else []

                def between(u: Tensor) -> Tensor:
                    if groups:
                        u = corner_jump(energy, u, groups, free)
                    if not jumps.any():
                        return u
                    return logistic_jump(lambda v: energy(v.view_as(u)), u.flatten(1), jumps).view_as(u)

                move = Move(FIRST, warm_up=self.fill_steps)
                u = hamiltonian(energy, u, self.fill_steps, move, free=free, between=between).state
        return quantise(box.inside(u), self.space)

    def _cells_of(self, x: Tensor) -> Tensor:
        """Which numbers are discrete, of x's shape."""
        discrete = torch.tensor([levels is not None for levels in self.space.dim_levels], device=x.device)
        return discrete.view(self.space.shape).expand(x.shape)

    def _estimate(self, y: Tensor, condition: Tensor | None) -> Tensor:
        """ln of the mean of several estimates of the density: nats `(B,)`."""
        count = min(self.score_samples, ESTIMATES)
        given = None if condition is None else condition.repeat(count, *[1] * (condition.dim() - 1))
        return log_mean_exp(self._point_log_prob(y.repeat(count, *[1] * (y.dim() - 1)), given).view(count, -1))[0]

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        with still(self.flow):
            z, _ = self.flow(midpoint(x, self.space), self.embedding(condition))
        return z

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        y, _ = self.flow.inverse(z, self.embedding(condition))
        return quantise(y, self.space)
