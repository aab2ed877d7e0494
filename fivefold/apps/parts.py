"""The parts of a trained system that can be exported: functions of encoded tensors, and of the noise they draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fivefold.diffusion._system import DiffusionSystem
from fivefold.errors import OptionError, Unfit
from fivefold.space import Batch, Space
from fivefold.system import Density, LatentSystem, System, seeded

Tensors = tuple[Tensor, ...]


class Part(NamedTuple):
    """A function of tensors, which may draw.

    Args:
        system: whose part it is; in eval mode.
        make: from a batch's size to inputs to try it on.
        call: from a batch's size and the inputs to the outputs.
        inputs: what each input is, by name, in order; the first dimension is the batch, but for those in `single`.
        outputs: what each output is.
        single: names of inputs `(1,)`, the same for the whole batch.
        facts: what else to know to use it.
    """

    system: System
    make: Callable[[int], Tensors]
    call: Callable[..., Tensors]
    inputs: dict[str, str]
    outputs: dict[str, str]
    single: tuple[str, ...] = ()
    facts: dict[str, Any] = {}


def part_of(system: System, name: str) -> Part:
    """A part of a system by its name.

    Raises:
        OptionError: there is no such part.
        Unfit: the system does not have it.
    """
    if name not in PARTS:
        raise OptionError(f"no part {name!r} to export: choose one of {', '.join(PARTS)}")
    part = PARTS[name](system)
    space = system.data_space.condition
    if space is None:
        return part
    return part._replace(
        make=lambda n: (*part.make(n), some(space, n)),
        inputs={**part.inputs, "condition": f"encoded conditions ({space.describe()})"},
    )


def _given(condition: Sequence[Tensor]) -> Tensor | None:
    """The condition where there is one: the last input."""
    return condition[0] if condition else None


def _sample(system: System) -> Part:
    def call(n: int, *condition: Tensor) -> Tensors:
        return (system._lowered(system._sample(n, _given(condition))),)

    dials = {name: getattr(system, name) for name in system.dials}
    return Part(system, lambda n: (), call, {}, {"x": _examples(system)}, facts={"dials": dials})


def _log_prob(system: System) -> Part:
    if system.density is Density.NONE:
        raise Unfit(f"{type(system).__name__} has no density: there is no log_prob to export")

    def call(n: int, x: Tensor, *condition: Tensor) -> Tensors:
        value, error = system._lifted_log_prob(x, _given(condition))
        value = (value.double() + system.data_space.log_det(x)).float()
        return (value,) if system.density is Density.EXACT else (value, error.float())

    note = f", {system.density_note}" if system.density_note else ""
    outputs = {"log_prob": f"nats of each example in the units of the data ({system.density.value}{note})"}
    if system.density is not Density.EXACT:
        outputs["standard_error"] = "of these nats, by the noise"
    facts = {"density": system.density.value, "note": system.density_note}
    return Part(system, lambda n: (_drawn(system, n),), call, {"x": _examples(system)}, outputs, facts=facts)


def _latent(system: System, what: str) -> LatentSystem:
    if not isinstance(system, LatentSystem):
        raise Unfit(f"{type(system).__name__} has no latent code: there is nothing to {what}")
    return system


def _encode(system: System) -> Part:
    latent = _latent(system, "encode")

    def call(n: int, x: Tensor, *condition: Tensor) -> Tensors:
        return (latent._encode(latent.lifted(Batch(x)).x, _given(condition)),)

    return Part(system, lambda n: (_drawn(system, n),), call, {"x": _examples(system)}, {"z": "codes, without noise"})


def _decode(system: System) -> Part:
    latent = _latent(system, "decode")

    def make(n: int) -> Tensors:
        x = _drawn(system, n)
        space = system.data_space.condition
        return (latent._encode(latent.lifted(Batch(x)).x, None if space is None else some(space, n)),)

    def call(n: int, z: Tensor, *condition: Tensor) -> Tensors:
        return (latent._lowered(latent._decode(z, _given(condition))),)

    return Part(system, make, call, {"z": "codes"}, {"x": _examples(system)})


def _step(system: System) -> Part:
    if not isinstance(system, DiffusionSystem):
        raise Unfit(f"{type(system).__name__} is no diffusion: there is no step of a sampler to export")
    times = system.plan.times(system.limit)
    middle = times[len(times) // 2 :][:2]

    def make(n: int) -> Tensors:
        y = system.enter(system.lifted(Batch(_drawn(system, n))).x)
        at = system.equation.at(middle[:1])
        return at.diffuse(y, torch.randn_like(y)), middle[:1].clone(), middle[1:].clone()

    def call(n: int, y: Tensor, t: Tensor, s: Tensor, *condition: Tensor) -> Tensors:
        y, x = system._step(y, t, s, _given(condition))
        return y, system._lowered(x)

    return Part(
        system,
        make,
        call,
        {"y": "noisy points at the time t", "t": "the time of y, 1 at the start", "s": "the next, earlier time"},
        {"next": "points at the time s", "x": f"predicted at t: {_examples(system)}"},
        single=("t", "s"),
        facts={
            "sampler": system.sampler,
            "times": times.tolist(),
            "start": float(system.equation.noise(torch.ones(()))),
            "how": "start with noise of the deviation `start`; one call for each two times that follow each other; "
            "then one with both the last: its x are the samples",
        },
    )


PARTS: dict[str, Callable[[System], Part]] = {
    "sample": _sample, "log_prob": _log_prob, "encode": _encode, "decode": _decode, "step": _step,
}  # fmt: skip


def _examples(system: System) -> str:
    return f"encoded examples ({system.data_space.describe()})"


def _drawn(system: System, n: int) -> Tensor:
    """Examples to try a part on: the system's own samples, which its networks are at home with."""
    space = system.data_space.condition
    return system.sample_encoded(n, None if space is None else some(space, n), seed=0)


def some(space: Space, n: int) -> Tensor:
    """Encoded examples of a space, drawn evenly where discrete."""
    with seeded(0):
        parts = [torch.randn(n) if levels is None else torch.randint(levels, (n,)) for levels in space.dim_levels]
        real = space.levels is None or space.kind == "table"
        return torch.stack([part.float() if real else part for part in parts], 1).view(n, *space.shape)


# --- noise ------------------------------------------------------------------------------------------


class Draw(NamedTuple):
    """What was drawn at once, and its law."""

    law: str
    value: Tensor


class Recorded(TorchFunctionMode):
    """While this is open what torch draws is kept in `draws`, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Draw] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _drawing(function, args, kwargs or {}, self._draw)

    def _draw(self, law: str, make: Callable[[], Tensor]) -> Tensor:
        self.draws.append(Draw(law, make()))
        return self.draws[-1].value.clone()


class Given(TorchFunctionMode):
    """While this is open what torch would draw is taken, in order, from `values`."""

    def __init__(self, values: Sequence[Tensor]) -> None:
        super().__init__()
        self.values = iter(values)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _drawing(function, args, kwargs or {}, lambda law, make: next(self.values).clone())


def _drawing(function: Any, args: Any, kwargs: Any, draw: Callable[[str, Callable[[], Tensor]], Tensor]) -> Any:
    """`function` of torch, with what it draws from `draw`."""
    if kwargs.get("generator") is None:
        if function in (torch.randn, torch.randn_like):
            return draw("standard normal", lambda: function(*args, **kwargs))
        if function in (torch.rand, torch.rand_like):
            return draw("uniform on [0, 1)", lambda: function(*args, **kwargs))
        if function is torch.randint:
            low, high = args[:2] if isinstance(args[1], int) else (0, args[0])
            return draw(f"integers from {low} to {high - 1}", lambda: function(*args, **kwargs))
        if function is torch.Tensor.exponential_:
            return args[0].copy_(draw("standard exponential", lambda: function(*args, **kwargs)))
        if function in (torch.multinomial, torch.Tensor.multinomial) and args[1] == 1:  # as torch itself draws one
            noise = draw("standard exponential", lambda: torch.empty_like(args[0]).exponential_())
            return (args[0] / noise).argmax(-1, keepdim=True)
    return function(*args, **kwargs)


@contextmanager
def symbolic_len() -> Iterator[None]:
    """While this is open `len` of a tensor may be a free size: Python's own is a whole number, which would fix it."""
    import builtins

    usual = builtins.len
    builtins.len = lambda x: x.shape[0] if isinstance(x, Tensor) and x.dim() else usual(x)
    try:
        yield
    finally:
        builtins.len = usual
