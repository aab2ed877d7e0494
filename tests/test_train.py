"""The trainer against truth: large batches, uninterrupted runs, one process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import fivefold
from fivefold.data.splits import Split
from fivefold.errors import Diverged, OptionError, RunError, Stopped
from fivefold.run import Run
from fivefold.training.batches import Batches
from fivefold.training.budget import Budget
from fivefold.training.fit import fit, resume
from fivefold.training.trainer import Trainer
from fivefold.training.validation import Validation
from tests.systems import Game, Regression

TABLE = np.random.default_rng(0).normal(size=(200, 3)) @ np.diag([1.0, 5.0, 0.1])


@pytest.fixture(scope="module")
def table() -> fivefold.Data:
    return fivefold.load_data(TABLE)


def weights(system: fivefold.System) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in system.state_dict().items()}


def same(a: fivefold.System, b: fivefold.System, tolerance: float = 0.0) -> bool:
    pairs = zip(weights(a).values(), weights(b).values(), strict=True)
    return all(torch.allclose(x.double(), y.double(), rtol=0, atol=tolerance) for x, y in pairs)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [("60s", 60, "seconds"), ("2m", 120, "seconds"), ("5000steps", 5000, "steps"), ("2.5epochs", 2.5, "epochs")],
)
def test_budgets_are_parsed(text, amount, unit):
    assert Budget.parse(text) == Budget(amount, unit)


@pytest.mark.parametrize("text", ["60", "s", "-5s", "0steps", "5 parsecs"])
def test_wrong_budgets_are_named(text):
    with pytest.raises(ValueError, match="expected a time"):
        Budget.parse(text)


def test_sgd_follows_the_closed_form(table):
    """Three steps of plain SGD on the loss, redone by hand with autograd over the same batches."""
    system = fit(Regression, table, budget="3steps", batch_size=10, seed=1, evaluations=1)
    torch.manual_seed(1)
    twin = Regression(table.space)
    for step in range(3):
        (batch,) = Batches(table.train, 10, 1, 1).at(step)
        gradients = torch.autograd.grad((twin.net(batch.x) - batch.x).square().mean(), list(twin.net.parameters()))
        with torch.no_grad():
            for p, g in zip(twin.net.parameters(), gradients, strict=True):
                p -= 0.01 * g
    assert torch.allclose(system.net.weight, twin.net.weight, atol=1e-6)


def test_every_epoch_sees_every_example_once(table):
    batches = Batches(table.train, 7, 1, 3)
    seen = torch.cat([batches._indices(step) for step in range(150)])
    for epoch in seen[: len(seen) // 150 * 150].split(150)[:7]:
        assert torch.equal(epoch.sort().values, torch.arange(150))


@pytest.mark.parametrize("system", [Regression, Game])
def test_accumulation_equals_the_large_batch(table, system):
    """Noise aside (the game's critic sees none of it in its buffers), micro-batches give the same step."""
    one, four = (fit(system, table, budget="5steps", batch_size=40, accumulate=k, evaluations=1) for k in (1, 4))
    if system is Regression:
        assert torch.allclose(one.net.weight, four.net.weight, atol=1e-6)
    else:
        assert torch.allclose(one.total, four.total, atol=1e-4)
        assert float(four.seen) == 200


def test_players_are_isolated(table):
    """With the generator's rate at 0 the generator stays, though the critic's loss runs through it, and inversely."""

    class Frozen(Game):
        def optimizers(self):
            return {
                self.critic: torch.optim.SGD(self.critic.parameters(), self.lr),
                self.generator: torch.optim.SGD(self.generator.parameters(), 0.0),
            }

        def updates(self, batch, progress):
            for update in super().updates(batch, progress):
                leaked = [p.grad for p in self.parameters() if p.grad is not None]
                assert not leaked
                yield update

    torch.manual_seed(0)
    before = Frozen(table.space).generator.weight.clone()
    after = fit(Frozen, table, budget="5steps", seed=0, evaluations=1)
    assert torch.equal(before, after.generator.weight)
    assert not torch.equal(before[:1], after.critic.weight[:, :2])


@pytest.mark.parametrize("options", [{"budget": "40steps"}, {"budget": "3.5epochs", "ema": 0.9, "clip": 0.5}])
@pytest.mark.parametrize("system", [Regression, Game])
def test_resume_equals_not_stopping(table, tmp_path, system, options):
    def interrupt(event):
        if event["step"] == 7 and "loss" in event:
            os.kill(os.getpid(), signal.SIGINT)

    whole = fit(system, table, batch_size=16, **options)
    with pytest.raises(Stopped, match="fivefold resume"):
        fit(system, table, batch_size=16, out=tmp_path / "run", watch=interrupt, **options)
    with pytest.raises(RunError, match="trust"):
        resume(tmp_path / "run", data=table)
    assert same(whole, resume(tmp_path / "run", data=table, trust="tests.systems"))
    progress = [line["progress"] for line in Run.open(tmp_path / "run", trust="tests.systems").log() if "loss" in line]
    assert progress == sorted(set(progress))


def test_training_further(table, tmp_path):
    fit(Regression, table, budget="10steps", out=tmp_path / "run")
    resume(tmp_path / "run", budget="30steps", data=table, trust="tests.systems")
    assert Run.open(tmp_path / "run", trust="tests.systems").record["steps"] == 30


def test_the_guard_goes_back_and_names_the_step(table, tmp_path):
    events = []
    with pytest.raises(Diverged, match=r"loss of model is not finite at step 12"):
        fit(
            Regression,
            table,
            poison_at=12,
            budget="40steps",
            evaluations=4,
            retries=2,
            out=tmp_path / "run",
            watch=events.append,
        )
    backs = [event for event in events if "went_back" in event]
    assert [event["learning_factor"] for event in backs] == [0.5, 0.25, 0.125]
    assert all(event["step"] == 10 for event in backs)  # the last validation before the poison
    system = fivefold.load(tmp_path / "run", trust="tests.systems")
    assert all(value.isfinite().all() for value in system.state_dict().values())


def test_yield_inside_no_grad_is_refused(table):
    class Wrong(Regression):
        def updates(self, batch, progress):
            with torch.no_grad():
                yield fivefold.Update(self, self.net(batch.x).sum())

    with pytest.raises(RuntimeError, match="no_grad"):
        fit(Wrong, table, budget="2steps")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lrr": 0.1}, "did you mean 'lr'"),
        ({"batchsize": 3}, "did you mean 'batch_size'"),
        ({"lr": "fast"}, "expects float"),
        ({"precision": "16"}, r"auto\|32\|bf16\|fp16"),
        ({"preset": "cifar"}, "no preset"),
    ],
)
def test_wrong_options_are_named(table, options, message):
    with pytest.raises(OptionError, match=message):
        fit(Regression, table, **{"budget": "1steps", **options})


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains(table, precision):
    plain, low = (
        fit(Regression, table, budget="60steps", lr=0.1, precision=p, evaluations=1) for p in ("32", precision)
    )
    assert torch.allclose(plain.net.weight, low.net.weight, atol=0.03)


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, None)])
def test_automatic_precision_is_the_devices_own(table, native, expected, monkeypatch):
    """Where bf16 is emulated a step can take a hundred times as long."""
    monkeypatch.setattr("fivefold.training.trainer.computes_in_bf16", lambda device: native)
    system = Regression(table.space)
    trainer = Trainer(system, table, None, lambda event: None, precision="auto")
    assert trainer.autocast is expected


def test_the_average_is_kept(table):
    """The average redone by hand from the weights after 1, 2, ... steps; its decay warms up."""
    torch.manual_seed(0)
    average = Regression(table.space).net.weight
    for step in range(1, 6):
        weight = fit(Regression, table, budget=f"{step}steps", lr=0.1, evaluations=1).net.weight
        average = torch.lerp(average, weight, 1 - min(0.3, (1 + step) / (10 + step)))
    kept = fit(Regression, table, budget="5steps", lr=0.1, ema=0.3, evaluations=1).net.weight
    assert torch.allclose(kept, average, atol=1e-6)
    assert not torch.allclose(kept, weight, atol=1e-4)


def test_validation_that_takes_long_leaves_out_marks_but_never_the_last(table, monkeypatch):
    true, events = Validation.__call__, []
    monkeypatch.setattr(Validation, "__call__", lambda self, system: time.sleep(0.2) or true(self, system))
    fit(Regression, table, budget="1.2s", batch_size=16, watch=events.append)
    looked = [event["progress"] for event in events if "validation" in event]
    assert 2 <= len(looked) <= 4
    assert looked[-1] == 1


def test_the_best_weights_by_validation_are_kept(table, tmp_path):
    """A rate that grows past stability: what is kept is the best validated state, not the last."""

    class Growing(Regression):
        def learning_rate(self, progress):
            return 1.0 if progress < 0.5 else -1.0  # climbs in the second half

    events = []
    fit(Growing, table, budget="100steps", lr=0.1, evaluations=10, watch=events.append)
    values = [event["validation"] for event in events if "validation" in event]
    assert values[-1] > min(values)
    kept = fit(Growing, table, budget="100steps", lr=0.1, evaluations=10)
    half = fit(Growing, table, budget="100steps", lr=0.1, evaluations=1)
    assert not same(kept, half)


def test_memory_mapped_data_trains_as_in_memory(tmp_path):
    np.save(tmp_path / "x.npy", TABLE.astype(np.float32))
    data = fivefold.load_data(tmp_path / "x.npy")
    lazy = fivefold.Data(
        data.name, data.space, fivefold.data.Split(len(data.train), read=lambda i: data.train.batch(i).x),
        data.valid, data.test, data.fingerprint,
    )  # fmt: skip
    assert same(fit(Regression, data, budget="20steps"), fit(Regression, lazy, budget="20steps"))


# --- the run folder ---------------------------------------------------------------------------------


@pytest.fixture
def finished(table, tmp_path):
    fit(Regression, table, budget="5steps", out=tmp_path / "run")
    return tmp_path / "run"


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = path.read_bytes()
    middle = slice(len(content) // 2, len(content) // 2 + 256)  # longer than what pads an archive's members
    path.write_bytes(content[: middle.start] + bytes(byte ^ 0x11 for byte in content[middle]) + content[middle.stop :])


def _foreign(path: Path) -> None:
    path.write_bytes(b'{"hello": 1}\n')


@pytest.mark.parametrize("damage", [_truncate, _flip, _foreign])
@pytest.mark.parametrize("name", ["run.json", "weights.safetensors", "training.pt"])
def test_damaged_files_are_named(finished, table, name, damage):
    damage(finished / name)

    def read():
        fivefold.load(finished, trust="tests.systems")
        resume(finished, data=table, trust="tests.systems", budget="9steps")

    with pytest.raises(RunError, match=name):
        read()


def test_nothing_that_is_loaded_can_run_code(finished, table):
    import pickle

    class Evil:
        def __reduce__(self):
            return (os.system, ("touch /tmp/fivefold-evil",))

    torch.save({"system": Evil()}, finished / "training.pt", pickle_module=pickle)
    with pytest.raises(RunError, match=r"training\.pt"):
        resume(finished, data=table, trust="tests.systems", budget="9steps")
    assert not Path("/tmp/fivefold-evil").exists()


def test_existing_and_unwritable_folders_are_refused(finished, table, tmp_path):
    with pytest.raises(RunError, match="resume"):
        fit(Regression, table, budget="1steps", out=finished)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        fit(Regression, table, budget="1steps", out=tmp_path / "file" / "run")


def test_a_full_disk_keeps_the_last_checkpoint(finished, table, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="No space left"):
        resume(finished, data=table, trust="tests.systems", budget="9steps")
    assert (finished / "training.pt").read_bytes() == before["training.pt"]
    assert not list(finished.glob(".*"))


# --- several processes ------------------------------------------------------------------------------

CHILD = """
import sys, numpy as np, torch
from fivefold import load_data
from fivefold.training.fit import fit
from tests.systems import Regression
from tests.test_train import TABLE
fit(Regression, load_data(TABLE), budget="100000steps", batch_size=8, evaluations=2000, checkpoint_seconds=0.02,
    out=sys.argv[1])
"""


@pytest.mark.slow
def test_kill_at_any_instant_leaves_a_run_that_resumes(table, tmp_path):
    chance = random.Random(0)
    for i in range(20):
        out = tmp_path / f"run{i}"
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(out)])
        deadline = time.monotonic() + 30
        while not (out / "run.json").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.4)
        child.kill()
        child.wait()
        resume(out, budget="20steps", data=table, trust="tests.systems")
        assert Run.open(out, trust="tests.systems").record["status"] == "finished"
        fivefold.load(out, trust="tests.systems")


class SlicedNoise(TorchFunctionMode):
    """Noise drawn on a rank is that rank's slice of what one process draws for the whole batch."""

    MAKERS = (torch.rand, torch.randn, torch.rand_like, torch.randn_like, torch.randint)

    def __init__(self, rank: int, world: int) -> None:
        super().__init__()
        self.rank, self.world = rank, world

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in self.MAKERS:
            return function(*args, **kwargs)
        state = torch.get_rng_state()
        drawn = function(*args, **kwargs)
        if not drawn.dim():
            return drawn
        shape = drawn.shape
        torch.set_rng_state(state)
        whole = (shape[0] * self.world, *shape[1:])
        if function in (torch.rand_like, torch.randn_like):
            drawn = function(args[0].new_empty(whole), **kwargs)
        elif function is torch.randint:
            drawn = function(*(a for a in args if isinstance(a, int)), whole, **kwargs)
        else:
            drawn = function(*whole, **kwargs)
        return drawn[self.rank * shape[0] : (self.rank + 1) * shape[0]]


def train_rank(rank: int, world: int, port: int, system: str, options: dict, path: str) -> None:
    """One process of several (or the only one): trains on digits and keeps its last weights."""
    from fivefold import catalog
    from fivefold.training import trainer as trainers
    from fivefold.training.fit import _trainer
    from fivefold.training.options import arguments

    torch.set_num_threads(1)
    if world > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    split = arguments(catalog.class_of(system), None, options)
    trainer = _trainer(system, split, fivefold.load_data("digits"), "cpu", lambda event: None)
    for optimizer in trainer.optimizers.values():  # Adam divides gradients that are 0 but for rounding by themselves
        for group in optimizer.param_groups:
            group["eps"] = 1e-3
    seed_step = trainers._seed_step
    trainers._seed_step = lambda seed, step, rank: seed_step(seed, step, 0)  # all ranks draw the whole batch's noise
    trainer._validate = lambda: None  # its noise is not sliced; what is compared are the last weights
    with SlicedNoise(rank, world):
        trainer.train()
    torch.save(trainer.system.state_dict(), f"{path}/{world}-{rank}.pt")


GAME = {"game": "wasserstein-gp", "batch_norm": False}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "options"),
    [("vae", {"dropout": 0.0}), ("realnvp", {"dropout": 0.0}), ("transformer", {"dropout": 0.0}), ("dcgan", GAME)],
)
def test_two_processes_equal_one(tmp_path, system, options):
    options = {**options, "budget": "5steps", "batch_size": 16}
    port = 20_000 + os.getpid() % 20_000
    for world in (1, 2):
        torch.multiprocessing.start_processes(
            train_rank, (world, port, system, options, str(tmp_path)), nprocs=world, start_method="spawn"
        )
    one = torch.load(tmp_path / "1-0.pt")
    for rank in (0, 1):
        other = torch.load(tmp_path / f"2-{rank}.pt")
        for name, value in one.items():
            assert torch.allclose(value.double(), other[name].double(), rtol=0, atol=1e-5), name


def test_balanced_batches_hold_every_class_equally_often():
    """Of 90 and 10 per cent; the examples of each in turn, none left out; the same at every call."""
    label = (torch.arange(200) % 10 == 0).float()[:, None]
    split = Split(200, torch.arange(200.0)[:, None], label)
    batches = Batches(split, 20, 1, 0, balanced=True)
    drawn = [batches.at(step)[0] for step in range(100)]
    assert abs(torch.cat([batch.condition for batch in drawn]).mean() - 0.5) < 0.05
    counts = torch.bincount(torch.cat([batch.x for batch in drawn])[:, 0].long(), minlength=200)
    rare, common = counts[label[:, 0] > 0], counts[label[:, 0] == 0]
    assert rare.max() - rare.min() <= 10  # an epoch's last round is not whole
    assert common.min() >= 1
    assert torch.equal(batches.at(3)[0].x, drawn[3].x)
    with pytest.raises(RunError, match="balance needs a condition"):
        Batches(Split(200, split.x), 20, 1, 0, balanced=True)
    with pytest.raises(RunError, match="200 values in 200 examples"):
        Batches(Split(200, split.x, split.x), 20, 1, 0, balanced=True)
