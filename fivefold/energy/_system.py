"""The bases of energies: the network, how their chains move, and what they learn by."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.energy._normaliser import Normaliser, by_condition, cell_log_mass
from fivefold.energy._objectives import OBJECTIVES, Objective
from fivefold.energy._samplers import LEARNERS
from fivefold.energy._taught import TAUGHT, teach
from fivefold.errors import Unfit
from fivefold.nets.norm import frozen
from fivefold.nets.residual import ConvEnergy, MLPEnergy, leaky
from fivefold.options import Need, depth_option, option, slot, width_option
from fivefold.space import Space
from fivefold.system import Batch, Density, System, Update, seeded
from fivefold.tools.annealing import Bracket
from fivefold.tools.boxes import Box
from fivefold.tools.matching import score_matching, score_of
from fivefold.tools.mcmc import ADAPTIVE, KERNELS, Move
from fivefold.tools.particles import near
from fivefold.tools.scaling import centre, uncentre
from fivefold.tools.traces import effective_sample_size, r_hat

NETS: dict[str, Callable[..., nn.Module]] = {"image": ConvEnergy, "table": MLPEnergy}
REACH = 10.0  # standard deviations: real dimensions are confined to a box, or exp(-E) might have no integral
FOLLOWED, SHORT = 32, 8  # chains whose mixing is measured, and steps that are too few to


class EnergySystem(System):
    """Base of systems whose density is that of an energy, p(x) = exp(-E(x)) / Z (survey Eq. 1): they have its network.

    Every layer of it can be wrapped, as by spectral norm.
    """

    points: ClassVar[bool] = True
    densities: ClassVar[dict[str, Density]] = {"image": Density.UNNORMALISED, "table": Density.UNNORMALISED}
    least_batch: ClassVar[int] = 32  # a contrast of means of fewer is noisy

    width: int = width_option(16, "channels at full resolution (tables: a quarter of a layer's units)", tune=(8, 256))
    blocks: int = option(3, "widths on images, each twice the one before at half the sides", least=1, tune=(1, 4))
    depth: int = depth_option(
        1, "residual blocks of each width (on tables: of one width, `blocks` times as many)", tune=(1, 8)
    )

    def energy_net(
        self, wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer, outputs: int = 1, space: Space | None = None
    ) -> nn.Module:
        """A network of examples `(B, *shape)` and a condition to one number each, `(B,)`, or several.

        Args:
            wrap: around every layer with weights.
            outputs: how many numbers.
            space: with another condition than the user's, where it has one.
        """
        bend = F.silu if self.smooth else leaky
        return NETS[self.space.kind](space or self.space, self.width, wrap, self.blocks, self.depth, outputs, bend)

    @property
    def smooth(self) -> bool:
        """Whether the network has second derivatives, which some objectives need."""
        return False


class ChainSystem(EnergySystem):
    """Base of energies whose samples are the ends of Markov chains (survey 2.2).

    Chains move in a space of states. What the energy learns by is a part, `objective`, any on any energy; how samples
    are drawn is a choice by name from a table, `KERNELS`. A leaf makes `energy`, the player.
    """

    sampling: ClassVar[str] = "mcmc"
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sample_steps": (0, 20, 60, 120)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {"ema": 0.99}}
    far: ClassVar[float] = math.inf  # a chain of the buffer with a number beyond it starts afresh
    temperature: float = 1.0  # the network's value in nats is it over this

    energy: nn.Module
    learner: Objective
    objective: Any = option(
        slot("contrastive-divergence"),
        "what the energy learns by",
        needs=Need("what an energy learns by", parts=OBJECTIVES, systems=False),
    )
    sampler: str = option("langevin", "how the chains of samples move", choices=tuple(KERNELS))
    sample_steps: int = option(60, "steps for a sample; 0 gives where it starts", least=0)
    beta1: float = option(0.0, "decay of the energy's mean of gradients", least=0, below=1, section="optimizers")

    def learn_by_objective(self) -> None:
        """Build the objective, once there is an energy; one that does nothing where a leaf has fixed it to None."""
        self.mixing: dict[str, float] = {}
        self.taken = 0  # evaluations of the energy by the last samples' chains
        if self.objective is None:
            self.learner = Objective(self)
        else:
            self.learner = self.fill("objective", self.space, make=lambda cls, **chosen: cls(self, **chosen))

    @property
    def smooth(self) -> bool:
        return self.objective is not None and OBJECTIVES[self.objective.name].smooth

    # --- what a leaf writes -----------------------------------------------------------------------

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Of one state; that of an example unless a leaf says otherwise."""
        return self.space.shape

    @abstractmethod
    def fresh(self, n: int) -> Tensor:
        """States `(n, ...)` at which chains start that do not go on."""

    @abstractmethod
    def move(self) -> Move:
        """Of the chains: a step's size, and its bounds."""

    def energies(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The network's values `(B,)` of centred examples: E times the temperature."""
        return self.energy(x, condition)

    def examples(self, state: Tensor, condition: Tensor | None) -> Tensor:
        """The centred examples of states."""
        return state

    def potential(self, state: Tensor, condition: Tensor | None) -> Tensor:
        """What chains go down, `(B,)`: at the temperature of `move` minus the logarithm of their law."""
        return self.energies(self.examples(state, condition), condition)

    def enter(self, x: Tensor) -> Tensor:
        """Encoded examples as the energy takes them: centred."""
        return centre(x, self.space)

    def leave(self, y: Tensor) -> Tensor:
        """The encoded examples nearest to what the energy takes."""
        return uncentre(y, self.space)

    def data(self, x: Tensor) -> Tensor:
        """Encoded examples as the energy is trained on them; noise may be drawn."""
        return self.enter(x)

    def score_matching(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """See `matching.score_matching`, of centred examples; a leaf may know the trace in closed form."""
        return score_matching(score_of(lambda y: self.energies(y, condition) / self.temperature), x)

    def held(self, on_data: Tensor, on_chains: Tensor) -> Tensor:
        """What is added to the contrast of both values, so that they stay where they are of use."""
        return on_data.new_zeros(())

    # --- training ---------------------------------------------------------------------------------

    def contrast(self, data: Tensor, ends: Tensor, condition: Tensor | None) -> Update:
        """A step down on data and up on where chains ended, `(B, ...)` (survey Eq. 2), the conditions of both given."""
        values = self.energies(torch.cat([data, ends]), condition)  # one pass
        on_data, on_ends = values.split([len(data), len(ends)])
        gap = on_data.mean() - on_ends.mean()
        stats = {"gap": gap.detach(), "chains": on_ends.mean().detach()}
        return Update(self.energy, gap + self.held(on_data, on_ends), stats)

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        yield from self.learner.updates(self, batch, progress)

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """Adam for the energy, and the objective's own for other players."""
        energy = torch.optim.Adam(self.energy.parameters(), self.lr, (self.beta1, 0.999), fused=True)
        return {self.energy: energy, **self.learner.optimizers(self)}

    def shards(self) -> list[nn.Module]:
        """None: chains hold the network's normalised weights fixed, outside of its `forward`."""
        return []

    # --- chains -----------------------------------------------------------------------------------

    def run(self, state: Tensor, condition: Tensor | None, steps: int, kernel: str = "", keep: int = 0) -> Tensor:
        """`steps` of the chains from `state`, the weights held fixed; `sampler` says how unless a kernel is named.

        Of `keep` chains it is measured how well they mix, see `monitor`.
        """
        kernel = kernel or self.sampler
        move = self.move()._replace(keep=keep, warm_up=steps if kernel in ADAPTIVE else 0)
        with frozen(self):
            ends = KERNELS[kernel](lambda y: self.potential(y, condition), state, steps, move)
        self.taken = ends.evaluations if keep else self.taken
        if ends.trace is not None and len(ends.trace) >= SHORT:
            trace = ends.trace.flatten(2)
            worth = effective_sample_size(trace).mean() / (trace.shape[1] * ends.evaluations)
            self.mixing = {
                "acceptance": ends.accepted.mean().item(), "effective_per_evaluation": worth.item(),
                "r_hat": r_hat(trace).max().item(),
            }  # fmt: skip
        return ends.state

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        state = self.run(self.sample_start(n, condition), condition, self.sample_steps, keep=FOLLOWED)
        return self.leave(self.examples(state, condition))

    def sample_start(self, n: int, condition: Tensor | None) -> Tensor:
        """States at which sampling starts."""
        return self.fresh(n)

    @property
    def sample_evaluations(self) -> int:
        """Of the energy, for one sample: those of the last draw, or its steps before there was one.

        A buffer's chains have many more behind them.
        """
        return self.taken or self.sample_steps

    def monitor(self, batch: Batch) -> dict[str, float]:
        """What the objective says, and of the last samples' chains: the share accepted, effective samples for one
        evaluation of the energy, and R-hat (of the worst number)."""
        return {**self.learner.monitor(self, batch), **self.mixing}


class PointSystem(ChainSystem):
    """Base of energies whose states are centred examples: discrete dimensions in [-1, 1], reals as they are.

    With noise of up to half a level on the data; categories are taken in their order. E(x) is the network's value over
    the temperature, and |x|^2 / (2 reference^2) where there is a reference law (Xie et al., 2016).
    """

    # the usual step size and noise (0: its root) of Langevin steps, and clamp
    moves: ClassVar[dict[str, tuple[float, float, float]]] = {
        "image": (0.003, 0.0, math.inf),
        "table": (0.1, 0.0, math.inf),
    }

    reach: Tensor
    normaliser: Normaliser | None = None
    taught: tuple[Any, Callable[[Tensor, int], Tensor]] | None = None  # by which weights, and what draws

    fill_steps = 60
    step_size: float = option(
        0.0, "of the drift, in units of the network's value; 0 for the usual one on this kind of data", least=0
    )
    noise: float = option(0.0, "standard deviation of the noise; 0 for the usual one on this kind of data", least=0)
    clamp: float = option(
        0.0, "largest component of the gradient that moves a chain; 0 for the usual one on this kind of data", least=0
    )
    start: Literal["buffer", "noise"] = option(
        "buffer", "where sampling starts: at the chains of training, where there are any, or at noise"
    )
    learned: str = option(
        "none", "a sampler that first learns on the energy and then draws in place of `sampler`",
        choices=("none", *LEARNERS),
    )  # fmt: skip
    reference: float = option(0.0, "deviation of a Gaussian that the energy tilts; 0 for none", least=0)
    lr = 1e-3

    def build(self) -> None:
        super().build()
        self.energy = self.make_energy()
        reach = torch.tensor([REACH if levels is None else 1.0 for levels in self.space.dim_levels])
        self.register_buffer("reach", reach.view(self.space.shape), persistent=False)
        step_size, noise, clamp = self.moves[self.space.kind]
        self.step_size, self.clamp = self.step_size or step_size, self.clamp or clamp
        self.noise = self.noise or noise or math.sqrt(self.step_size)
        self.temperature = self.noise**2 / self.step_size
        self.learn_by_objective()

    def make_energy(self) -> nn.Module:
        """The network, of centred examples and a condition to `(B,)`."""
        return self.energy_net()

    def move(self) -> Move:
        """Drift step_size / 2 times the gradient in centred space, each component clamped, and noise."""
        return Move(self.step_size, self.noise, self.clamp, (-self.reach, self.reach))

    def energies(self, x: Tensor, condition: Tensor | None) -> Tensor:
        value = self.energy(x, condition)
        if not self.reference:
            return value
        return value + self.temperature / (2 * self.reference**2) * x.square().flatten(1).sum(1)

    def nats(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """E `(B,)` of centred examples."""
        return self.energies(x, condition) / self.temperature

    def fresh(self, n: int) -> Tensor:
        """Uniform in discrete dimensions, standard normal in real ones."""
        uniform = 2 * torch.rand(n, *self.space.shape, device=self.device) - 1
        return torch.where(self.reach > 1, torch.randn_like(uniform), uniform)

    def data(self, x: Tensor) -> Tensor:
        """Centred examples with uniform noise of up to half a level on discrete dimensions."""
        levels = torch.tensor([n or 0 for n in self.space.dim_levels], device=x.device).view(self.space.shape)
        half = torch.where(levels > 1, 1 / (levels - 1), 0.0)
        y = self.enter(x)
        return (y + half * (2 * torch.rand_like(y) - 1)).clamp(-self.reach, self.reach)

    def sample_start(self, n: int, condition: Tensor | None) -> Tensor:
        fresh = self.fresh(n)
        start = fresh if self.start == "noise" else self.learner.starts(self, fresh, condition)
        return start.clamp(-self.reach, self.reach)

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        if self.learned == "none" or not self.sample_steps:
            return super()._sample(n, condition)
        if condition is not None:
            raise Unfit(f"{self.learned} learns on one energy, not on one for every condition: learned=none samples")
        weights = tuple((p.data_ptr(), p._version) for p in self.energy.parameters())
        start, box = self.sample_start(n, None), Box(-self.reach, self.reach)
        with frozen(self):
            if self.taught is None or self.taught[0] != weights:
                with seeded(0, self.device):
                    draw = teach(self.learned, lambda y: self.nats(y, None), box, self.sample_start(TAUGHT, None))
                self.taught = weights, draw
            return self.leave(self.taught[1](start, self.sample_steps))

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        """-E, up to the unknown -ln Z, in nats `(B,)`; once normalised, ln of the mass of cells less ln Z."""
        if self.normaliser is None:
            return -self.nats(centre(x, self.space), condition)
        value, error = cell_log_mass(self.nats, x, condition, self.space)
        with frozen(self):
            log_z, log_z_error = by_condition(self.normaliser.log_z, condition)
        return value - log_z, torch.hypot(error, log_z_error)

    def log_partition(
        self, condition: Tensor | None = None, temperatures: int = 1000, chains: int = 100, seed: int = 0
    ) -> Bracket:
        """Estimates of ln Z of centred points, nats, one low and one high; of one encoded condition `(1, ...)`."""
        with frozen(self):
            return Normaliser(self.nats, self.reach, temperatures, chains, seed).bracket(condition)

    def normalise(self, temperatures: int = 1000, chains: int = 100, seed: int = 0) -> str:
        if self.density is not Density.UNNORMALISED:
            return super().normalise(temperatures, chains, seed)
        self.normaliser = Normaliser(self.nats, self.reach, temperatures, chains, seed)
        self.density = Density.ESTIMATE
        if self.space.condition is not None:
            return "ln Z is estimated for every condition that is scored"
        with frozen(self):
            self.normaliser.bracket(None)
        return self.normaliser.words

    @property
    def density_note(self) -> str:
        return self.normaliser.words if self.normaliser else ""

    @property
    def filling(self) -> str:
        limit = "nearly exact" if self.sampler in ("langevin", "annealed") else "exact"
        return (
            "the chains that samples come from, started at samples near what is known and that held: approximate as "
            f"samples are; in the limit of many steps {limit} for the energy, which samples do not wait for"
        )

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        """What is known enters the energy as it is; its own numbers in the state go where they like."""
        start = near(lambda n, c: uncentre(self.sample_start(n, c), self.space), self.space, x, known, condition)
        y, wide = centre(torch.where(known, x, start), self.space), torch.where(known, math.inf, self.reach)
        warm_up = self.fill_steps if self.sampler in ADAPTIVE else 0
        move = self.move()._replace(bounds=(-wide, wide), warm_up=warm_up)

        def potential(state: Tensor) -> Tensor:
            return self.potential(torch.where(known, y, state), condition)

        with frozen(self):
            return uncentre(KERNELS[self.sampler](potential, y, self.fill_steps, move).state, self.space)


def twice(condition: Tensor | None) -> Tensor | None:
    """Of two batches with the same conditions, one after the other."""
    return None if condition is None else torch.cat([condition, condition])
