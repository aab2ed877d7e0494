"""One loop for every system: any number of players, one optimiser step a `yield`."""

from __future__ import annotations

import bisect
import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fivefold.data.splits import Data
from fivefold.errors import Diverged, OptionError, Stopped
from fivefold.machine import Threads, computes_in_bf16, keep_freed_memory, load
from fivefold.run import Run
from fivefold.system import System, Update
from fivefold.training import ranks
from fivefold.training.batches import Batches, mix
from fivefold.training.budget import Budget
from fivefold.training.log import Event, Log
from fivefold.training.options import Settings
from fivefold.training.recompute import recompute_layers
from fivefold.training.spread import Shards, Whole, set_by_first, whole
from fivefold.training.validation import Validation, measure_of

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class NonFinite(ArithmeticError):
    """A loss or gradient is NaN or infinite: names the player, the step and the module."""


class Trainer:
    """Trains a system on data until the budget is spent."""

    def __init__(
        self, system: System, data: Data, run: Run | None, watch: Callable[[Event], None], **options: Any
    ) -> None:
        settings = Settings(**options)
        self.system, self.run = system, run
        self.device = system.device
        self.on_cpu = self.device.type == "cpu"
        size = settings.batch_size or USUAL_BATCH
        self.batches = Batches(data.train.to(self.device), size, settings.accumulate, settings.seed, settings.balance)
        self.name = type(system).__name__
        self.sharded = settings.shard and ranks.world() > 1
        self.spread = self._spread(settings)
        self.ema = self.spread.average
        self.optimizers = optimizers = system.optimizers()
        self.names = {player: _player_name(system, player) for player in optimizers}
        self.params = {p: [w for g in o.param_groups for w in g["params"]] for p, o in optimizers.items()}
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        self.settings = settings
        self.budget, self.skipped, self.stopped = Budget.parse(settings.budget), 0, 0.0
        best = "bf16" if computes_in_bf16(self.device) else "32"
        self.precision = best if settings.precision == "auto" else settings.precision
        self.autocast = _AUTOCAST.get(self.precision)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        limit = self.budget.amount if self.budget.unit == "seconds" else None
        self.validation = Validation(data, self.device, measure_of(system, settings.by), limit)
        self.marks = validation_marks(settings.evaluations)
        self.step, self.seconds, self.learning_factor, self.failures, self.progress = 0, 0.0, 1.0, 0, 0.0
        self.looked, self.sizes = time.monotonic(), ""  # what the rule of sizes says
        self.validation_seconds = self.wall_seconds = 0.0
        choose = self.on_cpu and self.budget.unit == "seconds" and ranks.world() == 1
        self.threads = Threads(choose)
        self.loss, self.stats = torch.zeros(()), dict[str, Tensor]()  # of the last update, over micro-batches
        self.best: dict[str, Any] | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.pending: list[tuple[nn.Module, Tensor, Tensor]] = []
        self.log = Log(run, settings, watch)
        self._prepare_networks()

    def _spread(self, settings: Settings) -> Whole:
        if not self.sharded:
            return Whole(self.system, settings.ema > 0)
        _seed_step(settings.seed, 0, ranks.rank())
        return Shards(self.system, settings.ema > 0, self.batches.at(0)[0])

    def _prepare_networks(self) -> None:
        """As the settings say: computed again in the backward pass, compiled, replayed as CUDA graphs."""
        settings, compiled = self.settings, self.settings.compile or self.settings.graphs
        if compiled and (settings.recompute or settings.shard):
            raise OptionError("--recompute and --shard work by hooks that --compile and --graphs cannot follow: choose")
        if settings.graphs and self.on_cpu:
            raise OptionError("--graphs replays what a GPU does, and this trains on a processor: leave it out")
        if settings.recompute:
            _seed_step(settings.seed, 0, ranks.rank())
            set_by_first(self.system, self.batches.at(0)[0])  # what is computed again takes the path of later batches
            recompute_layers(self.system)
        for network in self.system.networks() if compiled else ():
            network.compile(mode="reduce-overhead" if settings.graphs else None)

    # --- the loop -------------------------------------------------------------------------------

    def train(self) -> System:
        """Until the budget is spent; returns the best system by validation, in eval mode."""
        self._announce()
        if self.on_cpu:
            keep_freed_memory()
        self.system.train()
        self.good = self.state()
        self._save()
        self.log.start(self)
        self.saved = self.looked = time.monotonic()
        with _interruptible() as interrupted, self.threads.chosen():
            while self._go_on(interrupted.is_set()):
                started = time.perf_counter()
                with self._guarded():
                    self._iterate()
                    self._check(everything=self.on_cpu)
                took = time.perf_counter() - started
                self.seconds += took
                self.threads.took(took)
        if self.stopped and self.progress < 1:
            self._save(status="stopped")
            where = f"fivefold resume {self.run.directory}" if self.run else "nothing was saved: no folder was named"
            raise Stopped(f"stopped at {self.progress:.0%} of {self.budget}; go on with: {where}")
        [unmeasured] = ranks.from_first([float(self.best is None)])
        if unmeasured:
            self._validate()
        self._save(status="finished")
        return self.result()

    def _announce(self) -> None:
        """Tell the watcher what is about to happen, how long and how large."""
        floats = sum(p.numel() for p in self.system.parameters())
        start = {
            "system": self.name,
            "parameters": floats,
            "device": str(self.device),
            "examples": self.batches.examples,
            "batch_size": self.batches.size,
            "budget": str(self.budget),
            "sizes": self.sizes,
            # The weights; to resume them, the best ones and Adam's two moments; and while it is written that once more.
            "bytes": 4 * floats * (1 + 2 * (4 + (self.ema is not None))),
        }
        if ranks.rank() == 0:
            self.log.watch({"step": self.step, "start": start})

    def _iterate(self) -> None:
        """One iteration of the system: its generators, one a micro-batch, advanced in lockstep."""
        _seed_step(self.settings.seed, self.step, ranks.rank())
        self._set_learning_rates(self.system.learning_rate(self.progress) * self.learning_factor)
        streams = [
            self.system.updates(self.system.lifted(batch), self.progress) for batch in self.batches.at(self.step)
        ]
        reply: dict[str, Tensor] | None = None
        while (player := self._advance(streams, reply)) is not None:
            reply = self.stats
            self._descend(player)
        self.step += 1
        if self.ema is not None:
            update_average(self.ema, self.system, min(self.settings.ema, (1 + self.step) / (10 + self.step)))

    def _set_learning_rates(self, factor: float) -> None:
        for group in (group for optimizer in self.optimizers.values() for group in optimizer.param_groups):
            group["lr"] = group["initial_lr"] * factor

    def _advance(self, streams: list[Iterator[Update]], reply: dict[str, Tensor] | None) -> nn.Module | None:
        """Advance every micro-batch to its next `yield` and add up gradients; the player, or None at the end."""
        share = 1 / len(streams)
        updates = [self._next(stream, reply if i == 0 else None, share) for i, stream in enumerate(streams)]
        players = {update.player if update else None for update in updates}
        if len(players) != 1:
            raise RuntimeError("micro-batches yielded different players: order must not depend on the data")
        yielded = [update for update in updates if update is not None]
        if not yielded:
            return None
        self.loss = yielded[0].loss if len(yielded) == 1 else torch.stack([update.loss for update in yielded]).sum()
        self.stats = {
            name: sum((update.stats[name].detach().float() for update in yielded[1:]), value.detach().float())
            for name, value in yielded[0].stats.items()
        }
        return yielded[0].player

    def _next(self, stream: Iterator[Update], reply: dict[str, Tensor] | None, share: float) -> Update | None:
        """One micro-batch to its next `yield`, and the gradients of its share of the loss."""
        with self._precision():
            try:
                update = self.spread.advance(stream, reply)
            except StopIteration:
                return None
        if update.player not in self.params:
            raise RuntimeError(f"{type(update.player).__name__} yields but has no optimiser")
        if not update.loss.requires_grad:
            raise RuntimeError("a system yielded inside no_grad, or a loss that no parameter enters")
        loss = update.loss if share == 1 else update.loss * share
        self.spread.backward(self.scaler.scale(loss), self.params[update.player])
        return update._replace(loss=loss.detach())  # lets the graph go before the next micro-batch

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.autocast)

    def _descend(self, player: nn.Module) -> None:
        """One optimiser step of `player` along the gradients at hand, averaged over ranks."""
        params, optimizer = self.params[player], self.optimizers[player]
        self.spread.reduce(params, self.loss, list(self.stats.values()))
        norm = self.loss
        if self.settings.clip or self.settings.skip:
            self.scaler.unscale_(optimizer)
            norm = whole(torch.nn.utils.clip_grad_norm_(params, self.settings.clip or math.inf))
        elif self.step % CHECK_EVERY == 0 and not self.scaler.is_enabled():
            norm = whole(torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None]))
        self.pending.append((player, self.loss, self.loss if self.scaler.is_enabled() else norm))
        if self.on_cpu:
            self._check_finite(*self.pending[-1])
        if self.settings.skip and norm.item() > self.settings.skip:
            self.skipped += 1
        else:
            self.scaler.step(optimizer)
        self.scaler.update()
        for p in params:
            p.grad = None

    # --- the guard ------------------------------------------------------------------------------

    def _check(self, everything: bool) -> None:
        """Log the losses since the last check; on an accelerator only now and then, since reading waits."""
        if everything or len(self.pending) >= CHECK_EVERY:
            for player, loss, norm in self.pending:
                if not self.on_cpu:
                    self._check_finite(player, loss, norm)
                self.log.losses(self.names[player], loss.item())
            self.pending.clear()
            skipped = {"skipped_steps": torch.tensor(self.skipped)} if self.settings.skip else {}
            self.log.stats(self.stats | skipped)

    def _check_finite(self, player: nn.Module, loss: Tensor, norm: Tensor) -> None:
        if math.isfinite(loss.item()) and (norm is loss or math.isfinite(norm.item())):
            return
        what = "gradient" if math.isfinite(loss.item()) else "loss"
        module = _first_bad(player)
        raise NonFinite(f"{what} of {self.names[player]} is not finite at step {self.step}, first in {module}")

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except NonFinite as error:
            self._go_back(error)

    def _go_back(self, error: NonFinite) -> None:
        """To the last good state with half the learning rate, or stop where that was done too often."""
        self.failures += 1
        failures, factor, seconds = self.failures, self.learning_factor / 2, self.seconds
        self.load_state(self.good)
        self.failures, self.learning_factor, self.seconds = failures, factor, seconds
        self.pending.clear()
        self.system.zero_grad(set_to_none=True)  # of the step that failed
        self.log.event({"step": self.step, "went_back": str(error), "learning_factor": factor})
        if failures > self.settings.retries:
            self._save(status="diverged", error=str(error))
            raise Diverged(
                f"{error}. Went back and halved the learning rate {self.settings.retries} times. The last good weights "
                f"(step {self.step}) are kept; a smaller --lr or --clip 1 usually mends it."
            ) from error

    # --- validation, checkpoints ----------------------------------------------------------------

    def averaged(self) -> System:
        """The system that is kept: the moving average where there is one."""
        return self.ema if self.ema is not None else self.system

    def _validate(self) -> None:
        """Measure, keep the best weights, remember this state as good."""
        self._check(everything=True)
        for player in self.params:
            if not all(bool(whole(p).isfinite().all()) for p in player.parameters()):
                where = f"at step {self.step}, first in {_first_bad(player)}"
                raise NonFinite(f"{self.names[player]} is not finite {where}")
        better = 0.0
        with self.spread.measured(self.averaged()) as measures:
            if measures:
                better = float(self._measure())
        [better] = ranks.from_first([better])
        if better and self.spread.keeps_best:
            self.best_weights = _clone(self.averaged().state_dict())
        self.good = self.state()

    def _measure(self) -> bool:
        """Validate the system that is kept and log it; whether it is the best so far."""
        started = time.perf_counter()
        value, name, density, distance, monitor = self.validation(self.averaged())
        self.validation_seconds += time.perf_counter() - started
        better = math.isfinite(value) and (self.best is None or value < self.best["value"])
        if better:
            self.best = {"value": value, "name": name, "step": self.step, "seconds": self.seconds}
        self.log.event(
            {"step": self.step, "seconds": self.seconds, "progress": self.progress}
            | {"validation": value, "name": name, "density": density, "distance": distance, "monitor": monitor}
        )
        return better

    def result(self) -> System:
        """The best system by validation, in eval mode."""
        return self.spread.result(self.system, self.best_weights).eval()

    def state(self) -> dict[str, Any]:
        """Everything that the next iteration depends on, copied."""
        return _clone(self._held())

    def _held(self) -> dict[str, Any]:
        return {
            "system": self.system.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else {},
            "optimizers": {self.names[p]: o.state_dict() for p, o in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "best_weights": self.best_weights,
            "validation_counts": self.validation.counts,
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        state = self.spread.placed(_clone(state))
        self.system.load_state_dict(state["system"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        for player, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][self.names[player]])
        self.scaler.load_state_dict(state["scaler"])
        self.best, self.best_weights = state["best"], state["best_weights"]
        self.validation.counts = state["validation_counts"]
        for name in _COUNTERS:
            setattr(self, name, state[name])

    def _save(self, status: str = "running", error: str | None = None) -> None:
        if self.run is None:
            return
        weights = self.best_weights or self.averaged().state_dict()
        now = time.monotonic()
        self.wall_seconds, self.looked = self.wall_seconds + now - self.looked, now
        spent = {"steps": self.step, "seconds": self.seconds, "examples": self.step * self.batches.size}
        spent |= {"validation_seconds": self.validation_seconds, "wall_seconds": self.wall_seconds}
        spent |= {"threads": self.threads.used, "load": load()}
        self.log.trackers.flush()
        state = self._held() | {"log_bytes": self.run.log_bytes()}
        self.spread.save(self.run, weights, state, finished=status == "finished")
        if ranks.rank() == 0:
            self.run.update(status=status, error=error, progress=self.progress, best=self.best, **spent)
        if status != "running":
            self.log.trackers.end(status)

    # --- the clock ------------------------------------------------------------------------------

    def _go_on(self, interrupted: bool) -> bool:
        """Move the clock, which all ranks read from rank 0; log, validate and save where due; whether to iterate."""
        before = self.progress
        self.progress, self.stopped = ranks.from_first([self._progress(), float(interrupted)])
        self.log.step(self)
        if bisect.bisect(self.marks, self.progress) > bisect.bisect(self.marks, before) and not self._looked_enough():
            with self._guarded():
                self._validate()
        [due] = ranks.from_first([time.monotonic() - self.saved])
        if due > self.settings.checkpoint_seconds:
            self._save()
            self.saved = time.monotonic()
        return self.progress < 1 and not self.stopped

    def _looked_enough(self) -> bool:
        """Whether validation, of a budget in time, has taken so long that this mark is left out; the last never is."""
        [spent] = ranks.from_first([self.validation_seconds])
        return self.budget.unit == "seconds" and self.progress < 1 and spent > VALIDATING * self.seconds

    def _progress(self) -> float:
        epochs = self.step * self.batches.size / self.batches.examples
        return self.budget.progress(seconds=self.seconds, steps=self.step, epochs=epochs)


VALIDATING = 0.5  # of the seconds trained: marks at which validation has taken more than that are left out
CHECK_EVERY = 16  # steps between readings that cost: of gradients, and on an accelerator of losses
USUAL_BATCH = 64  # where neither the user nor the rule of sizes says
_COUNTERS = (
    "step", "seconds", "learning_factor", "failures", "progress", "skipped", "validation_seconds", "wall_seconds"
)  # fmt: skip


def validation_marks(parts: int) -> list[float]:
    """The points of the budget to validate at: even, and halving before the first, since small data overfit early."""
    even = [i / parts for i in range(1, parts + 1)]
    return [even[0] / 8, even[0] / 4, even[0] / 2, *even] if parts > 1 else even


@torch.no_grad()
def update_average(average: System, system: System, decay: float) -> None:
    """Move parameters of `average` towards `system`'s by 1 - decay; copy buffers."""
    torch._foreach_lerp_(list(average.parameters()), list(system.parameters()), 1 - decay)
    for ours, theirs in zip(average.buffers(), system.buffers(), strict=True):
        ours.copy_(theirs)


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Set the event on the first Ctrl-C or termination signal, between steps; the second interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def stop(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Noise of a step is a function of seed, step and rank: a resumed run draws what it would have drawn."""
    mixed = mix(seed, step, 2 + rank)
    torch.default_generator.manual_seed(mixed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(mixed)


def _player_name(system: System, player: nn.Module) -> str:
    for name, module in system.named_modules():
        if module is player:
            return name or "model"
    raise RuntimeError(f"{type(system).__name__}.optimizers names a {type(player).__name__} that is not part of it")


def _first_bad(player: nn.Module) -> str:
    """The first parameter of `player` with a non-finite value or gradient."""
    for name, p in player.named_parameters():
        if not whole(p).isfinite().all():
            return f"the values of {name}"
        if p.grad is not None and not whole(p.grad).isfinite().all():
            return f"the gradient of {name}"
    return "the loss itself (parameters and gradients are finite)"


def _clone(state: Any) -> Any:
    """A copy that shares no tensor."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: _clone(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_clone(value) for value in state)
    return state
