"""How one model is spread over the processes that train it: whole on each, or in shards.

Shards are torch's own (`fully_shard`): between steps a process holds its part of every parameter, of the gradients and
of what optimisers remember. A network is gathered while it computes, and its gradients are averaged and scattered again
as soon as they are known; what belongs to no network is gathered for the whole of a loss.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor import empty as empty_shards

from fivefold.errors import Unfit
from fivefold.nets.norm import FirstBatch
from fivefold.run import Run
from fivefold.system import Batch, System, Update, seeded
from fivefold.training import ranks, shard_files

SMALLEST = 1 / 64  # of the parameters: smaller networks are gathered with what belongs to none
Stream = Iterator[Update]
Reply = dict[str, Tensor] | None
State = dict[str, Any]


class Whole:
    """The whole model on every rank; gradients are averaged in one all-reduce.

    Args:
        system: to be trained.
        averaged: whether a moving average of it is kept.
    """

    def __init__(self, system: System, averaged: bool) -> None:
        ranks.same_everywhere(system)
        self.average = copy.deepcopy(system) if averaged else None

    def advance(self, stream: Stream, reply: Reply) -> Update:
        """An iteration to its next `yield`; StopIteration at its end."""
        return stream.send(reply)  # type: ignore[attr-defined]

    def backward(self, loss: Tensor, params: list[Tensor]) -> None:
        """Add the gradients of `params` to what they have; other parameters get none."""
        loss.backward(inputs=params)

    def reduce(self, params: list[Tensor], loss: Tensor, stats: list[Tensor]) -> None:
        """Over ranks, in place: gradients and loss become means, `stats` sums."""
        if ranks.world() > 1:
            grads = [p.grad for p in params if p.grad is not None]
            ranks.sum_flat([*grads, loss, *stats])
            torch._foreach_div_([*grads, loss], float(ranks.world()))

    def measured(self, system: System) -> contextlib.AbstractContextManager[bool]:
        """While this is open the system can be called by rank 0; whether this process is that."""
        return contextlib.nullcontext(ranks.rank() == 0)

    @property
    def keeps_best(self) -> bool:
        """Whether this process holds (its part of) the best weights."""
        return ranks.rank() == 0

    def placed(self, state: State) -> State:
        """What a checkpoint holds as this process holds it."""
        return state

    def empty(self, size: torch.Size) -> Tensor:
        """Room for what a checkpoint has in shards."""
        return torch.empty(size)

    def save(self, run: Run, weights: dict[str, Tensor], state: State, finished: bool) -> None:
        """Write weights and what resuming needs into the run folder."""
        if ranks.rank() == 0:
            run.save(weights, state)
            shard_files.remove(run.directory)

    def result(self, system: System, weights: dict[str, Tensor]) -> System:
        """The trained system with these weights of rank 0 (none: as it is), the same on every rank."""
        if weights:
            system.load_state_dict(weights)
        ranks.same_everywhere(system)
        return system


class Shards(Whole):
    """A part of the model on every rank; see the module.

    Args:
        system: to be trained; it is sharded in place, and its optimisers must be made after that.
        averaged: whether a moving average of it is kept, in shards too.
        first: this rank's first batch, for what the first batch sets (`FirstBatch`): shards would lose that.

    Raises Unfit, by name, where something stops it.
    """

    def __init__(self, system: System, averaged: bool, first: Batch) -> None:
        check(system)
        super().__init__(system, averaged)
        self.kind = type(system)
        self.mesh = device_mesh.init_device_mesh(system.device.type, (ranks.world(),))
        set_by_first(system, first)
        self.system = system
        least = SMALLEST * _size(system)
        for network in system.shards():
            if _size(network) > least:
                self._shard(network)
        self._shard(system)
        self.plain = self.kind.updates is System.updates  # its loss is all there is: nothing follows the `yield`
        system.advance = partial(_advance, system, self.kind.__name__)  # type: ignore[assignment]
        register_fsdp_forward_method(system, "advance")
        if self.average is not None:
            self._shard(self.average)

    def _shard(self, module: nn.Module) -> None:
        for parameter in module.parameters():
            if not isinstance(parameter, DTensor):  # channels last is an order of memory that shards do not know
                parameter.data = parameter.data.contiguous()
        fully_shard(module, mesh=self.mesh)

    def advance(self, stream: Stream, reply: Reply) -> Update:
        if self.plain and inspect.getgeneratorstate(stream) == inspect.GEN_SUSPENDED:  # type: ignore[arg-type]
            return super().advance(stream, reply)
        update: Update | None = self.system.advance(stream, reply)  # type: ignore[operator]
        if update is None:
            for part in _parts(self.system):  # no backward pass follows, which would
                part.reshard()
            raise StopIteration
        return update

    def backward(self, loss: Tensor, params: list[Tensor]) -> None:
        """A plain backward pass: with `inputs` given shards get no gradients. There is one player, who gets all."""
        loss.backward()

    def reduce(self, params: list[Tensor], loss: Tensor, stats: list[Tensor]) -> None:
        ranks.sum_flat([loss, *stats])  # gradients are means already
        loss.div_(ranks.world())

    @contextlib.contextmanager
    def measured(self, system: System) -> Iterator[bool]:
        """Gathered on every rank, so that rank 0 can call whatever it likes with no other taking part."""
        for part in _parts(system):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield ranks.rank() == 0
        finally:
            for part in _parts(system):
                part.set_reshard_after_forward(not isinstance(part, System), recurse=False)
                part.reshard()

    @property
    def keeps_best(self) -> bool:
        return True

    def placed(self, state: State) -> State:
        shards = {name for name, value in self.system.state_dict().items() if isinstance(value, DTensor)}
        for part in ("system", "ema", "best_weights"):
            state[part] = {name: self._cut(value) if name in shards else value for name, value in state[part].items()}
        shapes = {p.shape for p in self.system.parameters()}
        for optimizer in state["optimizers"].values():
            for moments in optimizer["state"].values():
                of_parameters = {n: v for n, v in moments.items() if isinstance(v, Tensor) and v.shape in shapes}
                moments.update({name: self._cut(value) for name, value in of_parameters.items()})
        return state

    def empty(self, size: torch.Size) -> Tensor:
        return empty_shards(size, device_mesh=self.mesh, placements=[Shard(0)])

    def _cut(self, value: Tensor) -> DTensor:
        if isinstance(value, DTensor):
            return value
        return distribute_tensor(value.to(self.system.device), self.mesh, [Shard(0)], src_data_rank=None)

    def save(self, run: Run, weights: dict[str, Tensor], state: State, finished: bool) -> None:
        """In shards, each process its own; the weights, and all of it in the end, as any run has them."""
        if finished:
            super().save(run, gathered(weights), gathered(state), finished)
        else:
            shard_files.save(run, gathered(weights), state)

    def result(self, system: System, weights: dict[str, Tensor]) -> System:
        """A system of the kind that was given, whole."""
        state = gathered(weights or system.state_dict(), everywhere=True)
        with seeded(0):
            trained = self.kind(system.data_space, **system.arguments)
        trained.load_state_dict(state)
        return trained.to(system.device)


def check(system: System) -> None:
    """Unfit, with the reason, where the training of a system does not go through shards."""
    name, players = type(system).__name__, len(system.optimizers())
    if players > 1:
        why = f"{players} players train by turns, and the backward pass of shards knows no turns"
    elif whole := [name for name, p in system.named_parameters() if p.dim() == 0 or p.numel() == 0]:
        why = f"parameters that are single numbers or empty cannot be cut ({', '.join(whole[:3])})"
    else:
        return
    raise Unfit(f"{name} cannot be trained with --shard: {why}. Without it every process holds the whole model")


def set_by_first(system: System, batch: Batch) -> None:
    """Let a batch set what the first one sets, and nothing else."""
    waiting = [module for module in system.modules() if isinstance(module, FirstBatch) and not module.started]
    if waiting:
        started = {id(module.started) for module in waiting}
        kept = [(buffer, buffer.clone()) for buffer in system.buffers() if id(buffer) not in started]
        system.train()
        next(system.updates(system.lifted(batch), 0.0))
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


def _advance(system: System, name: str, stream: Stream, reply: Reply) -> Update | None:
    """As `Whole.advance`, None at the end: the parameters that it reads are gathered around it."""
    before = {key: parameter._version for key, parameter in system.named_parameters()}
    try:
        return stream.send(reply)  # type: ignore[attr-defined]
    except StopIteration:
        return None
    finally:
        written = [key for key, p in system.named_parameters() if p._version != before[key]]
        if written:
            raise Unfit(f"{name} writes {', '.join(written)} itself, which shards would lose")


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _parts(system: System) -> list[FSDPModule]:
    return [module for module in system.modules() if isinstance(module, FSDPModule)]


def whole(tensor: Tensor) -> Tensor:
    """Of every rank's shards the whole; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(state: Any, everywhere: bool = False) -> Any:
    """A state with whole tensors in place of shards: on the CPU of rank 0 (the others get None), or of every rank."""
    if isinstance(state, DTensor):
        tensor = whole(state)
        return tensor.cpu() if everywhere or ranks.rank() == 0 else None
    if isinstance(state, dict):
        return {key: gathered(value, everywhere) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value, everywhere) for value in state)
    return state
