"""What a training needs before it is begun: memory of a device by its parts, and seconds a step.

A step is made with tensors that have shapes and no numbers (torch's fake tensors), so that a system too large for
this machine can be looked at; what is alive at the same time is counted. Where a step looks at its numbers (solvers,
spectral bounds) two small real ones are made, and drawn out in proportion to the batch.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fivefold import catalog
from fivefold.data import Data
from fivefold.errors import FivefoldError, Unfit
from fivefold.machine import fastest_threads
from fivefold.nets.norm import FirstBatch
from fivefold.space import Batch
from fivefold.system import System, Update, seeded
from fivefold.training.options import Settings
from fivefold.training.recompute import layers_of, recompute_layers
from fivefold.training.spread import check

FEW = 4  # examples of the step that is measured, and twice as many of a second
LARGE = 20_000_000  # parameters from which a step of the system's usual size is measured in place of its own
PARTS = (1, 2, 4, 8, 16, 32)  # by which batches are cut
Optimizers = dict[nn.Module, torch.optim.Optimizer]


@dataclass(frozen=True)
class Way:
    """How a batch is worked off on a device: options of training that cost time and spare memory."""

    batch_size: int
    devices: int = 1
    accumulate: int = 1
    recompute: bool = False
    shard: bool = False

    @property
    def share(self) -> int:
        """Examples of a device's micro-batch."""
        return max(self.batch_size // (self.devices * self.accumulate), 1)

    def __str__(self) -> str:
        flags = [f"--batch-size {self.batch_size}"]
        flags += [f"--accumulate {self.accumulate}"] if self.accumulate > 1 else []
        flags += [flag for flag, on in (("--recompute", self.recompute), ("--shard", self.shard)) if on]
        return " ".join(flags)


@dataclass(frozen=True)
class Need:
    """Bytes on a device."""

    model: int  # parameters and buffers
    states: int  # of optimisers
    copies: int  # the moving average, the best weights, and what a step that is not finite goes back to
    gathered: int  # while a step is computed from shards at the most whole parameters, and what they are sent in
    step: int  # gradients and activations, at the most

    @property
    def total(self) -> int:
        return self.model + self.states + self.copies + self.gathered + self.step


class Counted(NamedTuple):
    """Of a step: bytes made in it and alive at the most, bytes of optimisers' states, operations."""

    most: int
    states: int
    operations: int


class Forecast:
    """Of the training of a system on some data.

    Args:
        cls: of the system.
        data: what it is trained on; looked at for the shape of examples.
        options: of the system.
        settings: of the training.
        device: on which a small step is measured.
    """

    def __init__(
        self, cls: type[System], data: Data, options: dict[str, Any], settings: Settings, device: torch.device
    ) -> None:
        self.cls, self.data, self.options, self.settings, self.device = cls, data, options, settings, device
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.system = self._built()
        self.numbers = sum(p.numel() for p in self.system.parameters())
        self.parameters, self.buffers = _bytes(self.system.parameters()), _bytes(self.system.buffers())
        self.abstract = True  # whether steps need no numbers
        self.counted: dict[tuple[int, int, bool], Counted] = {}

    def need(self, way: Way) -> Need:
        """What a device has to hold."""
        step, cut = self.step(way), way.devices if way.shard else 1
        model, states = self.buffers + -(-self.parameters // cut), -(-step.states // cut)
        average = 2 if self.settings.ema else 0
        copies = model * (3 + average) + states  # the best; and to go back all of it again
        return Need(model, states, copies, 2 * self.parameters if way.shard else 0, step.most)

    def step(self, way: Way) -> Counted:
        """One step of a device."""
        key = (way.share, min(way.accumulate, 2), way.recompute)
        if key not in self.counted:
            self.counted[key] = self._step(*key)
        counted = self.counted[key]
        return counted._replace(operations=counted.operations * way.accumulate // key[1])

    def seconds(self, way: Way) -> float:
        """Of a step, in proportion to the operations of a small one that is measured on this device."""
        seconds, operations = self.small
        return seconds * self.step(way).operations / operations

    @cached_property
    def small(self) -> tuple[float, int]:
        """Seconds and operations of a step of few examples; of the system's usual size where this one is large."""
        options = self.options if self.numbers <= LARGE else {}
        system = catalog.build(self.cls, self.data.space, **options).to(self.device).train()
        optimizers, batches = system.optimizers(), [_to(batch, self.device) for batch in self._batches(FEW, 1)]
        with _Count() as count:
            _make_step(system, optimizers, batches)
        return fastest_threads(lambda: _make_step(system, optimizers, batches))[1], max(count.operations, 1)

    def ways(self, asked: Way) -> Iterator[Way]:
        """As asked; then what spares memory, the cheapest first; then all of that with smaller batches."""
        again = [asked.recompute, *([True] if layers_of(self.system) else [])]
        shard = [asked.shard, *([True] if asked.devices > 1 and self.shards else [])]
        share = asked.batch_size // asked.devices
        parts = [asked.accumulate * k for k in PARTS if share % (asked.accumulate * k) == 0]
        for cut, recompute, accumulate in product(shard, again, parts):
            yield replace(asked, accumulate=accumulate, recompute=recompute, shard=cut)
        for batch in (asked.batch_size // k for k in PARTS[1:] if share % k == 0):
            yield replace(asked, batch_size=batch, accumulate=1, recompute=again[-1], shard=shard[-1])

    @property
    def shards(self) -> bool:
        """Whether the system can be trained in shards."""
        try:
            check(self.system)
        except Unfit:
            return False
        return True

    # --- counting -------------------------------------------------------------------------------

    def _built(self) -> System:
        """Without numbers, unless it is built by looking at them."""
        try:
            with seeded(0), self.fake:
                return catalog.build(self.cls, self.data.space, **self.options)
        except FivefoldError:
            raise
        except Exception:  # tensors without numbers raise many kinds of errors where numbers are asked for
            with seeded(0):
                return catalog.build(self.cls, self.data.space, **self.options)

    def _step(self, examples: int, parts: int, recompute: bool) -> Counted:
        if self.abstract:
            try:
                with FakeCopyMode(self.fake):
                    system = copy.deepcopy(self.system)
                with self.fake:
                    return _count(system, self._batches(examples, parts), recompute)
            except FivefoldError:
                raise
            except Exception:  # as in `_built`
                self.abstract = False
        with seeded(0):
            few, more = (
                _count(catalog.build(self.cls, self.data.space, **self.options), self._batches(n, parts), recompute)
                for n in (FEW, 2 * FEW)
            )
        return Counted(*(int(a + (b - a) * (examples - FEW) / FEW) for a, b in zip(few, more, strict=True)))

    def _batches(self, examples: int, parts: int) -> list[Batch]:
        """The first examples of the training data, over and over."""
        with unset_fake_temporarily():
            batch = self.data.train.batch(torch.arange(examples) % len(self.data.train))
        return [
            Batch(batch.x.clone(), None if batch.condition is None else batch.condition.clone()) for _ in range(parts)
        ]


class _Count(TorchDispatchMode):
    """Counts what is done while it is open: bytes that are alive, now and at the most, and operations.

    Operations are those that torch's own counter knows, but without its hooks, which second derivatives do not survive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = self.operations = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if (packet := function._overloadpacket) in flop_registry:
            self.operations += flop_registry[packet](*args, **(kwargs or {}), out_val=made)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def _count(system: System, batches: list[Batch], recompute: bool) -> Counted:
    for module in system.modules():
        if isinstance(module, FirstBatch):
            module.skip()
    if recompute:
        recompute_layers(system)
    optimizers = system.train().optimizers()
    _make_step(system, optimizers, batches)  # after which optimisers have their states
    states = sum(
        _bytes(v for v in s.values() if isinstance(v, Tensor)) for o in optimizers.values() for s in o.state.values()
    )
    with _Count() as count:
        _make_step(system, optimizers, batches)
    return Counted(count.most, states, count.operations)


def _make_step(system: System, optimizers: Optimizers, batches: list[Batch]) -> None:
    """What the trainer does in a step that costs memory and time."""
    streams = [iter(system.updates(system.lifted(batch), 1.0)) for batch in batches]
    while (player := _advanced(streams, optimizers)) is not None:
        optimizers[player].step()
        optimizers[player].zero_grad()


def _advanced(streams: list[Iterator[Update]], optimizers: Optimizers) -> nn.Module | None:
    """Every micro-batch to its next `yield` and the gradients of its loss; the player, None at the end."""
    player = None
    for stream in streams:
        update = next(stream, None)
        if update is not None:
            player = update.player
            update.loss.backward(inputs=[p for g in optimizers[player].param_groups for p in g["params"]])
    return player


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.x.to(device), None if batch.condition is None else batch.condition.to(device))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
