"""The contract: a generative model is a distribution that learns.

A system is one class in one file. It declares its options, says which spaces it fits and what kind of density it
has, builds its networks, and writes `loss` (or `updates`, where there are several players), `_sample` and `_log_prob`
on encoded examples. Everything a user calls (`sample`, `log_prob`, ...) is final and here: it encodes and decodes once
and adds the log-determinant of the encoding, so no system can forget it.
"""

from __future__ import annotations

import contextlib
import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from enum import Enum
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from fivefold import options
from fivefold.errors import OptionError, Unfit
from fivefold.options import Configured, Need, Slot, class_in, option, options_of, preset_of, reach_into_slots
from fivefold.space import Batch, Space
from fivefold.space.lift import lift_of
from fivefold.space.partial import encode_partial, put_back

__all__ = [
    "Batch", "Density", "LatentSystem", "Score", "Space", "System", "Update", "log_mean_exp", "seeded",
    "temperature_of",
]  # fmt: skip


BLOCK = 500  # samples that are made at once, unless they are so large that
BLOCK_NUMBERS = 2**22  # would be exceeded
REFILLS = 20  # times that a number is drawn again which the model says is missing
LIFTS = 16  # draws of what lifted columns are, for each example scored


class Density(Enum):
    """The kind of density a system has. The kind travels with the number wherever it is shown."""

    EXACT = "exact"
    LOWER_BOUND = "lower bound"
    ESTIMATE = "estimate"  # with a standard error
    UNNORMALISED = "unnormalised"  # up to a constant: never in bits, never ranked
    NONE = "none"

    @property
    def comparable(self) -> bool:
        """Whether its value can be averaged and shown in nats or bits."""
        return self in (Density.EXACT, Density.LOWER_BOUND, Density.ESTIMATE)


class Update(NamedTuple):
    """One optimiser step: minimise `loss` over the parameters of the module `player`.

    `stats` are logged. What `yield` returns is this step's `stats` summed over micro-batches and
    ranks, handed to one of the micro-batches' generators (None to the others), for state that must
    move once a step.
    """

    player: nn.Module
    loss: Tensor
    stats: dict[str, Tensor] = {}


class Score(NamedTuple):
    """Log-probability in nats of each example and its standard error (0 where it is not sampled)."""

    log_prob: Tensor
    standard_error: Tensor


class System(Configured, nn.Module, ABC):
    """Base of every model: `System(space, **options)`.

    Class facts, literals so that the catalogue can read them without importing, inherited as usual:

    - `densities`: kind of space -> kind of density there. Its keys are the spaces that fit; what an
      instance has may differ (`density_on`, or `build` where options decide).
    - `free_form`: Table 1's "free-form Jacobian" column.
    - `conditional`: False where the system cannot be conditioned: such a space is refused.
    - `points`: whether it takes examples as points of R^D, so that categories without order become such (`Lift`).
    - `noisy_log`: whether ln p is an unbiased or low estimate itself, so that exponentials of it must not be averaged.
    - `sampling`: "autoregressive", "mcmc", "iterative" or "direct", for Table 2's star rule.
    - `least_batch`: the smallest batch that the rule of sizes chooses.
    - `presets`: name -> options of the system or of `fit`, over those that its bases give under the same name;
      "default" always applies (for options of `fit`; the system's own defaults stand where they are declared).
    - `published`: preset -> how many parameters its paper states, and the source; a third element names the
      attribute that is counted where it is not the whole system.
    - `dials`: what can be turned when sampling -> values worth a curve. Each is an attribute of that name, a
      number that `_sample` reads; densities never depend on it.
    """

    densities: ClassVar[dict[str, Density]]
    free_form: ClassVar[bool] = True
    conditional: ClassVar[bool] = True
    points: ClassVar[bool] = False
    noisy_log: ClassVar[bool] = False
    sampling: ClassVar[str] = "direct"
    least_batch: ClassVar[int] = 16
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {}
    dials: ClassVar[dict[str, tuple[float, ...]]] = {}
    fill_steps: int = 100  # of the chains that fill in what is missing; `fill_in` can be asked for others

    lr: float = option(1e-3, "learning rate at its highest", above=0, tune=(1e-5, 1e-1), log=True, section="optimizers")

    def __init__(self, space: Space, **options: Any) -> None:
        """Of the user's `space`, which stays `data_space`; `space` is what networks model, some columns lifted."""
        super().__init__()
        self.data_space, self.lift = space, lift_of(space, self.points)
        space = self.lift.inner if self.lift else space
        name, kind = type(self).__name__, self.density_on(space)
        if kind is None:
            if space.kind in self.densities:
                raise Unfit(f"{name} does not fit this {space.describe()}")
            raise Unfit(f"{name} models {' and '.join(self.densities)} data, not {space.kind}")
        if space.condition is not None and not self.conditional:
            raise Unfit(f"{name} cannot be conditioned")
        self.space = space
        self.density: Density = kind
        self.configure(options)
        self.build()
        many_ways = space.vocabulary is not None and bool(space.vocabulary.merges)  # to split one text into tokens
        if (self.lift or many_ways) and self.density is Density.EXACT:
            self.density = Density.LOWER_BOUND

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as a run keeps it: class, space, options, dials and state. Networks may hold what does not pickle."""
        dials = {name: getattr(self, name) for name in self.dials}
        return _rebuilt, (type(self), self.data_space, self.arguments, dials, self.state_dict(), self.training)

    def __deepcopy__(self, memo: dict[int, Any]) -> System:
        """As of any module: not by what `__reduce__` says, which would build it anew."""
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    @classmethod
    def density_on(cls, space: Space) -> Density | None:
        """The kind of density on a space, None where it does not fit."""
        return cls.densities.get(space.kind)

    @property
    def density_note(self) -> str:
        """How the density is computed, for people: "64 samples"."""
        return ""

    # --- what a system writes -------------------------------------------------------------------

    def build(self) -> None:
        """Networks, buffers and slots' parts, from `self.space` and the options, which are attributes by now."""

    def loss(self, batch: Batch) -> Tensor:
        """Scalar to minimise, the mean over the batch, of a system with one player."""
        raise NotImplementedError(f"{type(self).__name__} writes neither loss nor updates")

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        """One training iteration as a generator: one `yield` is one optimiser step.

        `progress` in [0, 1] over the budget is the only clock. Never yield inside a context manager
        such as `no_grad`; nothing but registered buffers survives an iteration.
        """
        yield Update(self, self.loss(batch))

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """An optimiser for every player."""
        return {self: torch.optim.Adam(self.parameters(), self.lr, fused=True)}

    def learning_rate(self, progress: float) -> float:
        """Factor on every learning rate at `progress`; constant unless a system says otherwise."""
        return 1.0

    @abstractmethod
    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        """`n` encoded examples `(n, *shape)`; `condition` is encoded, with n rows."""

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        """Nats `(B,)` of encoded examples, of the kind `density`; or a pair with standard errors."""
        raise NotImplementedError

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        """Encoded examples `(B, *shape)` whose unknown numbers are draws given the known ones, one for each row.

        `known` is of x's shape; what x has where it is False means nothing. `filling` says how, in words.
        """
        raise NotImplementedError

    @property
    def filling(self) -> str:
        """How missing numbers are drawn and whether exactly so, in words; "" where they cannot be."""
        return ""

    def normalise(self, temperatures: int = 1000, chains: int = 100, seed: int = 0) -> str:
        """Make an estimate of an unnormalised density, by ln Z between so many `temperatures`; says what was found."""
        raise Unfit(f"{type(self).__name__} has no constant to estimate: its density is {self.density.value}")

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Signs of collapse, measured on a validation batch now and then (in eval mode, no grad)."""
        return {}

    def networks(self) -> list[nn.Module]:
        """Modules that compilation may replace (called through `forward`, no double backward)."""
        return [m for m in self.children() if type(m).forward is not nn.Module.forward]

    def shards(self) -> list[nn.Module]:
        """Networks whose parameters training reads in their `forward` alone: `--shard` gathers each by itself."""
        return self.networks()

    @property
    def sample_evaluations(self) -> int:
        """How many network evaluations one sample takes, one after another."""
        return 1

    @final
    def fill(self, name: str, space: Space, make: Callable[..., Any] | None = None, **usual: Any) -> Any:
        """What the user (or the default) put into the slot `name`, built.

        Args:
            name: of the option.
            space: that a system in the slot is built on.
            make: builds a part that is no system, from its class and its options; of its options alone unless given.
            usual: options that the part has unless the user says otherwise, where it has them at all.

        Raises `Unfit` with the list of those that fit.
        """
        need, content = options_of(type(self))[name].needs, self.arguments[name]
        assert need is not None
        cls = class_in(content, need)
        known = options_of(cls)
        chosen = {n: value for n, value in usual.items() if n in known} | part_options(cls, content)
        if not issubclass(cls, System):
            return make(cls, **chosen) if make else cls(**chosen)
        why = ""
        try:
            part = cls(space, **chosen) if suits(cls, need, space) else None
        except Unfit as error:
            part, why = None, f" ({error})"
        if part is None or (need.densities and part.density.name not in need.densities):
            raise Unfit(
                f"{content} cannot be the {name} of {type(self).__name__}{why}: it needs {need.what}. "
                f"These fit: {', '.join(fitting(need, space))}"
            )
        return part

    # --- what a user calls ----------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @final
    def sample(self, n: int = 1, condition: Any = None, *, seed: int | None = None, **dials: float) -> Any:
        """`n` examples in the user's own form (see `Space`).

        Args:
            n: how many.
            condition: in a conditional space, one condition for all or one for each; None draws nothing
                and is an error there.
            seed: the same seed gives the same samples; None draws from torch's global generator.
            dials: the system's own, for this call: `temperature=0.8`.
        """
        encoded = self._encode_condition(condition, n)
        with self.turned(**dials):
            return self.data_space.decode(self.sample_encoded(n, encoded, seed=seed))

    @final
    def sample_encoded(self, n: int, condition: Tensor | None = None, *, seed: int | None = None) -> Tensor:
        """As `sample`, encoded: `(n, *shape)` on the system's device.

        Made in blocks whose size follows from the space alone, so that what a seed gives does too.
        """
        if n < 1:
            raise ValueError(f"sample needs n of at least 1, got {n}")
        size = max(min(BLOCK, BLOCK_NUMBERS // self.space.dims), 1)
        parts = condition.split(size) if condition is not None else [None] * -(-n // size)
        with seeded(seed, self.device), self.evaluating():
            sizes = (min(size, n - i * size) for i in range(len(parts)))
            return torch.cat([self._lowered(self._sample(*each)) for each in zip(sizes, parts, strict=True)])

    @final
    def log_prob(self, data: Any, condition: Any = None, *, seed: int | None = 0) -> Tensor:
        """Nats `(B,)`, float64, of the user's examples in the user's units; of the kind `density` says.

        Raises `Unfit` where the system has no density.
        """
        return self.score(data, condition, seed=seed).log_prob

    @final
    def score(self, data: Any, condition: Any = None, *, seed: int | None = 0, batch_size: int = 250) -> Score:
        """`log_prob` with its standard errors."""
        x = self.data_space.encode(data)
        return self.score_encoded(Batch(x, self._encode_condition(condition, len(x))), seed=seed, batch_size=batch_size)

    @final
    def score_encoded(self, batch: Batch, *, seed: int | None = 0, batch_size: int = 250) -> Score:
        """As `score`, of encoded examples; still in the user's units."""
        if self.density is Density.NONE:
            raise Unfit(f"{type(self).__name__} has no density: it can only sample")
        values, errors = [], []
        with seeded(seed, self.device), self.evaluating():
            for first in range(0, len(batch.x), batch_size):
                part = slice(first, first + batch_size)
                condition = None if batch.condition is None else batch.condition[part].to(self.device)
                value, error = self._lifted_log_prob(batch.x[part].to(self.device), condition)
                values.append(value.double().cpu())
                errors.append(error.double().cpu())
        return Score(torch.cat(values) + self.data_space.log_det(batch.x).cpu(), torch.cat(errors))

    def _lifted_log_prob(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of the user's encoded examples, nats `(B,)` and their standard errors: see `Lift`."""

        def once(y: Tensor) -> tuple[Tensor, Tensor]:
            result = self._log_prob(y, condition)
            return result if isinstance(result, tuple) else (result, torch.zeros_like(result))

        if self.lift is None:
            return once(x)
        draws, own = [], []
        for _ in range(LIFTS):
            y, weight = self.lift.up(x)
            value, error = once(y)
            draws.append(value.double() + weight)
            own.append(error.double())
        values = torch.stack(draws)
        if self.noisy_log:
            return values.mean(0), values.std(0) / math.sqrt(LIFTS)
        value, error = log_mean_exp(values)
        # what a draw's own error is of is common to all draws where it is of a normaliser
        return value, torch.maximum(error, torch.stack(own).mean(0)) if self.density is Density.ESTIMATE else error

    @final
    def lifted(self, batch: Batch) -> Batch:
        """The user's encoded examples as `loss`, `updates` and `monitor` take them."""
        return batch if self.lift is None else batch._replace(x=self.lift.up(batch.x)[0])

    @final
    def _lowered(self, y: Tensor) -> Tensor:
        """Encoded examples of the networks as the user's."""
        return y if self.lift is None else self.lift.down(y)

    @final
    def fill_in(
        self,
        data: Any,
        condition: Any = None,
        *,
        missing: Any = None,
        draws: int = 1,
        steps: int | None = None,
        seed: int | None = None,
        batch_size: int = 500,
    ) -> Any:
        """Examples of which a part is missing, that part drawn given the rest; what was given stays as it was.

        `filling` says how, and in what sense the draws follow the model.

        Args:
            data: examples in the user's own form. In tables missing cells are NaN or None, and columns may be left out.
            condition: in a conditional space, one for all or one for each.
            missing: of what is no table, an array that is True where a value is missing: of one example or of all.
            draws: for each example, one after another: those of the first, those of the second, ...
            steps: of the chains, where there are any; the system's own unless given.
            seed: the same seed gives the same draws; None draws from torch's global generator.
            batch_size: how many are drawn at once.

        Raises:
            Unfit: the system cannot draw that part given the rest.
            DataError: what is known does not fit the space.
        """
        if draws < 1:
            raise OptionError(f"draws for each example are at least 1, got {draws}")
        x, known = encode_partial(self.data_space, data, missing)
        given = self._encode_condition(condition, len(x))
        x, known = x.repeat_interleave(draws, 0), known.repeat_interleave(draws, 0)
        given = None if given is None else given.repeat_interleave(draws, 0)
        filled = self.fill_encoded(x, known, given, steps=steps, seed=seed, batch_size=batch_size)
        return put_back(self.data_space, data, self.data_space.decode(filled), draws, missing)

    @final
    def fill_encoded(
        self,
        x: Tensor,
        known: Tensor,
        condition: Tensor | None = None,
        *,
        steps: int | None = None,
        seed: int | None = None,
        batch_size: int = 500,
    ) -> Tensor:
        """As `fill_in`, encoded: x `(B, *shape)` and which of its numbers are known, of the same shape."""
        if not self.filling:
            raise Unfit(
                f"{type(self).__name__} cannot fill in what is missing: it has no way to draw it given the rest"
            )
        if steps is not None and steps < 1:
            raise OptionError(f"steps of the chains that fill in are at least 1, got {steps}")
        before = self.fill_steps
        try:
            self.fill_steps = steps or before
            with seeded(seed, self.device), self.evaluating():
                parts = []
                for first in range(0, len(x), batch_size):
                    part = slice(first, first + batch_size)
                    a, b = x[part].to(self.device), known[part].to(self.device)
                    given = None if condition is None else condition[part].to(self.device)
                    parts.append(a if b.all() else torch.where(b, a, self._lifted_fill(a, b, given).to(a.dtype)))
        finally:
            self.fill_steps = before
        return torch.cat(parts)

    def _lifted_fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        """`_fill` of the user's encoded examples. What may be missing in the data themselves is drawn again until it is
        not, a few times: whoever fills in asks for numbers."""
        if self.lift is None:
            return self._fill(x, known, condition)
        found = x
        for _ in range(REFILLS):
            again = (found.isnan() | ~known if found is x else found.isnan()).any(1)
            if not again.any():
                break
            part = None if condition is None else condition[again]
            drawn = self._fill(self.lift.up(x[again])[0], self.lift.known(known[again]), part)
            found = found.clone()
            found[again] = torch.where(known[again], x[again], self.lift.down(drawn))
        return found

    @final
    @contextlib.contextmanager
    def turned(self, **dials: float) -> Iterator[None]:
        """With the system's dials at these values, then back; OptionError for one that it does not have."""
        for name in dials:
            if name not in self.dials:
                has = ", ".join(self.dials) or "none"
                raise OptionError(f"{type(self).__name__} has no dial {name!r}; its dials: {has}")
        before, known = {name: getattr(self, name) for name in dials}, options_of(type(self))
        try:
            for name, value in dials.items():
                value = type(before[name])(value)
                setattr(self, name, known[name].check(value) if name in known else value)
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    @final
    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """In eval mode and without gradients, then back to the mode before."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(was_training)

    def _encode_condition(self, condition: Any, n: int) -> Tensor | None:
        space = self.space.condition
        if space is None:
            if condition is not None:
                raise Unfit(f"{type(self).__name__} was trained without a condition; leave it out")
            return None
        if condition is None:
            raise Unfit(f"this model needs a condition: {space.describe()}")
        if space.kind == "table" and not hasattr(condition, "columns"):
            import numpy as np

            condition = np.asarray(condition, dtype=object).reshape(-1, len(space.columns))
        encoded = space.encode(condition)
        encoded = encoded.expand(n, *encoded.shape[1:]) if len(encoded) == 1 else encoded
        if len(encoded) != n:
            raise ValueError(f"expected 1 or {n} conditions, got {len(encoded)}")
        return encoded.to(self.device)


class LatentSystem(System):
    """A system with a latent code of each example: it can encode, reconstruct and interpolate."""

    @abstractmethod
    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The latent code of encoded examples, `(B, ...)`, without noise."""

    @abstractmethod
    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """Encoded examples of latent codes, without noise."""

    def _rate_distortion(self, x: Tensor, condition: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """A hierarchy's levels, top first, of encoded examples; none unless a system says otherwise.

        Of each level the nats `(B,)` of its code and the encoded reconstructions `(B, *shape)` that it and those
        above allow, the levels below being the prior's.
        """
        return []

    @final
    def rate_distortion(self, x: Tensor, condition: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """`_rate_distortion` in eval mode, without gradients, the same at every call."""
        with seeded(0, self.device), self.evaluating():
            x = self.lifted(Batch(x)).x
            return [(rate, self._lowered(made)) for rate, made in self._rate_distortion(x, condition)]

    @final
    def encode(self, data: Any, condition: Any = None) -> Tensor:
        """Latent codes of the user's examples."""
        return self._apply_encoded(self._encode, data, condition)

    @final
    def reconstruct(self, data: Any, condition: Any = None) -> Any:
        """The user's examples through the latent code and back."""
        made = self._apply_encoded(lambda x, c: self._lowered(self._decode(self._encode(x, c), c)), data, condition)
        return self.data_space.decode(made)

    @final
    def interpolate(self, start: Any, end: Any, steps: int = 8, condition: Any = None) -> Any:
        """From one example (a batch of one) to another in `steps` along the straight line of their codes."""
        a, b = self.encode(start, condition), self.encode(end, condition)
        weights = torch.linspace(0, 1, steps, device=a.device).view(-1, *[1] * (a.dim() - 1))
        with self.evaluating():
            made = self._decode(torch.lerp(a, b, weights), self._encode_condition(condition, steps))
            return self.data_space.decode(self._lowered(made))

    def _apply_encoded(self, f: Callable[[Tensor, Tensor | None], Tensor], data: Any, condition: Any) -> Tensor:
        x = self.data_space.encode(data).to(self.device)
        with seeded(0, self.device), self.evaluating():
            return f(self.lifted(Batch(x)).x, self._encode_condition(condition, len(x)))


def temperature_of(*paths: str) -> Any:
    """A property: the temperature at which the parts at these paths sample; 1 is the model's own."""

    def get(system: nn.Module) -> float:
        return float(getattr(attrgetter(paths[0])(system), "temperature", 1.0))

    def put(system: nn.Module, value: float) -> None:
        for path in paths:
            attrgetter(path)(system).temperature = value

    return property(get, put)


def part_options(cls: type, content: Slot) -> dict[str, Any]:
    """The options of a slot's part: of its preset, those that are its own and not of `fit`, under those given."""
    known = options_of(cls)
    preset = {name: value for name, value in preset_of(cls, content.preset).items() if name.partition(".")[0] in known}
    return reach_into_slots(preset | dict(content.options), known)


def suits(cls: type[System], need: Need, space: Space) -> bool:
    """Whether a system, by its class alone, has what a slot needs on a space."""
    kind = cls.density_on(space)
    return (
        kind is not None
        and (not need.densities or kind.name in need.densities)
        and (need.sampling is None or cls.sampling == need.sampling)
        and (space.condition is None or cls.conditional)
        and all(hasattr(cls, method) for method in need.methods)
        and not any(getattr(cls, fact, False) for fact in need.without)
    )


def fitting(need: Need, space: Space) -> list[str]:
    """The names of all that has what a slot needs on a space."""
    systems = options.catalogue.classes() if need.systems else {}
    return [*need.parts, *(name for name, cls in systems.items() if suits(cls, need, space))]


def _rebuilt(cls: type[System], space: Space, arguments: Any, dials: Any, state: Any, training: bool) -> System:
    """What `System.__reduce__` took apart; torch's generators stay as they are."""
    with seeded(0):
        system = cls(space, **arguments)
    system.load_state_dict(state)
    for name, value in dials.items():
        setattr(system, name, value)
    return system.to(next(iter(state.values())).device).train(training)


def log_mean_exp(values: Tensor) -> tuple[Tensor, Tensor]:
    """ln of the mean of exp(values) over dim 0, `(K, B)` to `(B,)`, and its standard error (delta method)."""
    samples = len(values)
    mean = values.logsumexp(0) - math.log(samples)
    if samples == 1:
        return mean, torch.zeros_like(mean)
    weights = (values - mean).exp()  # of mean 1
    return mean, weights.std(0) / math.sqrt(samples)


@contextlib.contextmanager
def seeded(seed: int | None, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run with torch's generators seeded, then put them back as they were; None leaves them alone."""
    if seed is None:
        yield
        return
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
