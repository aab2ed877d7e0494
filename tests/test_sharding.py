"""Sharded over several processes a model is trained as in one, and its run is any other."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fivefold
from fivefold import catalog
from fivefold.errors import OptionError, RunError, Stopped, Unfit
from fivefold.options import slot
from fivefold.run import Run
from fivefold.training.fit import fit, resume
from fivefold.training.options import arguments
from fivefold.training.spread import check
from tests.systems import Game, Regression
from tests.test_train import TABLE, SlicedNoise

SMALL: dict[str, dict[str, Any]] = {
    "vae": {"ema": 0.9, "width": 8, "depth": 1, "dropout": 0.0},  # writes `updates`; an average beside it
    # weights are read outside of `forward`: one group
    "igebm": {"width": 4, "objective": slot("contrastive-divergence", chain_steps=2, chain_start="noise")},
    "gated-pixelcnn": {"channels": 8, "layers": 1, "dropout": 0.0, "accumulate": 2, "clip": 0.5},
    "glow": {"hidden": 8, "layers": 1},  # the first batch sets parameters; weights are channels last in memory
    "ddpm": {"channels": 8, "dropout": 0.0},
    "transformer": {"width": 8, "layers": 2, "dropout": 0.0},
}
LARGER: dict[str, dict[str, Any]] = {
    **SMALL, "realnvp": {"layers": 2, "hidden": 8, "dropout": 0.0}, "ffjord": {"hidden": 8}, "vdvae": {"width": 8},
}  # fmt: skip
SINGLE = {"vae", "ddpm", "vdvae"}  # the others are trained in float64: after 50 steps rounding alone would be seen


def losses_of(system: str, options: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    """The loss of every step and the weights after the last, the noise being that of the whole batch."""
    from fivefold.tools.diffusion import spread as numbers
    from fivefold.training import spread
    from fivefold.training import trainer as trainers
    from fivefold.training.fit import _trainer

    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as after:
        seed_step, start = trainers._seed_step, spread.set_by_first
        patch.setattr(trainers, "_seed_step", lambda seed, step, rank: seed_step(seed, step, 0))

        def started(*given: Any) -> None:
            with SlicedNoise(rank, world):
                start(*given)

        def sliced(n: int, device: torch.device) -> torch.Tensor:
            share = torch.rand(n)  # a slice already
            return (torch.arange(rank * n, (rank + 1) * n) + share) / (n * world)

        if system not in SINGLE:
            torch.set_default_dtype(torch.float64)
            after.callback(torch.set_default_dtype, torch.float32)
        patch.setattr(spread, "set_by_first", started)
        patch.setattr("fivefold.diffusion._system.spread", sliced if world > 1 else numbers)
        split = arguments(catalog.class_of(system), None, {"batch_size": 16, "seed": 1, **options})
        trainer = _trainer(system, split, fivefold.load_data("digits"), torch.device("cpu"), lambda event: None)
        for optimizer in trainer.optimizers.values():  # Adam would blow rounding up
            for group in optimizer.param_groups:
                group["eps"] = 1e-3
        losses = []
        trainer.system.train()
        with SlicedNoise(rank, world):
            while trainer.progress < 1:
                trainer._iterate()
                losses.append(trainer.loss.item())
                trainer.progress = trainer._progress()
        held = sum(p.numel() if world == 1 else p.to_local().numel() for p in trainer.system.parameters())
        parts = (getattr(module, "unshard", None) for module in trainer.system.modules())
        whole = trainer.spread.result(trainer.averaged(), {})
        return {
            "losses": losses,
            "weights": dict(whole.named_parameters()),
            "held": held,
            "parts": sum(map(bool, parts)),
        }


def stopped(folder: Path, data: fivefold.Data, **options: Any) -> None:
    """A run of `Regression` that is stopped at half of its budget."""

    def watch(event: dict[str, Any]) -> None:
        if event["step"] == 10 and "loss" in event:
            os.kill(os.getpid(), signal.SIGINT)

    with contextlib.suppress(Stopped):
        fit(Regression, data, out=folder, batch_size=16, evaluations=2, watch=watch, **REGRESSION, **options)


REGRESSION = {"budget": "20steps", "ema": 0.5}


def process(rank: int, world: int, port: int, folder: Path, work: str) -> None:
    """One of several: trains each system, in shards, and keeps what it found."""
    from fivefold.training import ranks

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks.start(torch.device("cpu"))
    systems, steps = (SMALL, 4) if work == "small" else (LARGER, 50)
    for name, options in systems.items():
        found = losses_of(name, {**options, "budget": f"{steps}steps", "shard": True}, rank, world)
        torch.save(found, folder / f"{name}-{rank}.pt")
    if work == "small":
        table = fivefold.load_data(TABLE)
        stopped(folder / "sharded", table, shard=True)
        resume(folder / "one", data=table, trust="tests.systems", shard=True)
        kept = fit(Regression, table, out=folder / "kept", batch_size=16, evaluations=2, shard=True, **REGRESSION)
        torch.save(kept.state_dict(), folder / f"kept-{rank}.pt")
        with pytest.raises(Unfit, match="Game cannot be trained with --shard: 2 players"):
            fit(Game, table, budget="2steps", batch_size=16, shard=True)


def start(folder: Path, world: int, work: str) -> None:
    port = 20_000 + os.getpid() % 20_000
    torch.multiprocessing.start_processes(process, (world, port, folder, work), nprocs=world, start_method="spawn")


@pytest.fixture(scope="module")
def table() -> fivefold.Data:
    return fivefold.load_data(TABLE)


@pytest.fixture(scope="module")
def done(table: fivefold.Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave behind, all of it at once, since starting them takes longest."""
    folder = tmp_path_factory.mktemp("two")
    stopped(folder / "one", table)
    start(folder, 2, "small")
    return folder


def check_equal(folder: Path, system: str, options: dict[str, Any], steps: int, world: int) -> None:
    one = losses_of(system, {**options, "budget": f"{steps}steps"}, 0, 1)
    several = [torch.load(folder / f"{system}-{rank}.pt") for rank in range(world)]
    for other in several:
        assert len(other["losses"]) == len(one["losses"]) == steps
        np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-5, atol=1e-5)
        for name, value in one["weights"].items():
            assert torch.allclose(value.double(), other["weights"][name].double(), rtol=0, atol=1e-4), name
    assert sum(other["held"] for other in several) == one["held"]
    assert max(other["held"] for other in several) < one["held"]


@pytest.mark.parametrize("system", SMALL)
def test_two_processes_with_shards_equal_one(done, system):
    check_equal(done, system, SMALL[system], 4, 2)


def test_networks_are_gathered_one_by_one_where_that_is_enough(done):
    """Encoder, decoder and the rest of `vae`; chains hold the weights of `igebm` outside of its network; two blocks."""
    parts = {"vae": 3, "igebm": 1, "ddpm": 2, "transformer": 3}
    assert {name: torch.load(done / f"{name}-0.pt")["parts"] for name in parts} == parts


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_fifty_steps_with_shards_equal_those_of_one_process(tmp_path, world):
    start(tmp_path, world, "larger")
    for system, options in LARGER.items():
        check_equal(tmp_path, system, options, 50, world)


# --- run folders --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unstopped(table: fivefold.Data) -> fivefold.System:
    return fit(Regression, table, batch_size=16, evaluations=2, **REGRESSION)


def assert_alike(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.allclose(value.double(), b[name].double(), rtol=0, atol=1e-6), name


def test_a_run_sharded_over_two_goes_on_on_one(done, table, unstopped, tmp_path):
    folder = shutil.copytree(done / "sharded", tmp_path / "run")
    assert Run.open(folder, trust="tests.systems").record["status"] == "stopped"
    assert not (folder / "training.pt").exists()
    assert len(list(folder.glob("shards-*/*.safetensors"))) == 2  # each process wrote its own
    assert_alike(resume(folder, data=table, trust="tests.systems").state_dict(), unstopped.state_dict())
    assert_ordinary(folder)


def test_a_run_of_one_goes_on_sharded_over_two(done, unstopped):
    assert_ordinary(done / "one")
    assert_alike(fivefold.load(done / "one", trust="tests.systems").state_dict(), unstopped.state_dict())


def test_a_finished_run_is_any_other(done, table, unstopped):
    assert_ordinary(done / "kept")
    for rank in (0, 1):
        assert_alike(torch.load(done / f"kept-{rank}.pt"), unstopped.state_dict())
    resume(done / "kept", data=table, trust="tests.systems", budget="25steps", shard=False)
    assert Run.open(done / "kept", trust="tests.systems").record["steps"] == 25


def assert_ordinary(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"run.json", "weights.safetensors", "training.pt", "log.jsonl"}
    assert Run.open(folder, trust="tests.systems").record["status"] == "finished"


@pytest.mark.parametrize("name", ["rest.pt", "*.safetensors"])
def test_damaged_shards_are_named(done, table, tmp_path, name):
    folder = shutil.copytree(done / "sharded", tmp_path / "run")
    path = next(folder.glob(f"shards-*/{name}"))
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] if name == "rest.pt" else content[:middle] + b"?" + content[middle + 1 :])
    with pytest.raises(RunError, match=r"shards-\d.* is (damaged|truncated)"):
        resume(folder, data=table, trust="tests.systems")


def test_what_cannot_be_sharded_says_so(table):
    with pytest.raises(OptionError, match="there is one: start it as torchrun"):
        fit(Regression, table, budget="2steps", shard=True)
    data = fivefold.load_data("digits")
    for name, why in (("dcgan", "2 players"), ("bnaf", "single numbers")):
        with pytest.raises(Unfit, match=rf"cannot be trained with --shard: .*{why}"):
            check(catalog.build(name, data.space))
