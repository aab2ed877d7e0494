"""Systems of Table 1 beside peers: the same network sizes, batches and machine, alternating in one process.

    pip install -c constraints.txt -e ".[peers]"
    python -m benchmarks.table1 [CASE ...] [--rounds 7]

Each figure is the median over rounds of the ratio of our seconds to the peer's in that round. What trains here
trains with the library's whole trainer (guard, log, moving average where the system's preset has one). Writes
`results/table1.json` and `.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import RESULTS, machine, write_result
from fivefold import catalog, load_data
from fivefold.data import Data
from fivefold.machine import computes_in_bf16, keep_freed_memory
from fivefold.nets.adversarial import ConvGenerator
from fivefold.space import Column, Space
from fivefold.system import System
from fivefold.training.trainer import Trainer

Timed = Callable[[], float]  # runs once and returns seconds


class Pair(NamedTuple):
    """Two sides to time, what they have in common, and the largest ratio that is asked."""

    ours: Timed
    peer: Timed
    what: str
    asked: float | None


def images(n: int, shape: tuple[int, int, int], levels: int) -> Data:
    """Random images: only time is measured."""
    x = np.random.default_rng(0).integers(0, levels, (n, *shape[1:], shape[0]), dtype=np.uint8)
    return load_data(x[..., 0] if shape[0] == 1 else x)


def training(system: System, data: Data, seconds: float, **options: Any) -> Timed:
    """Seconds a step in the trainer's own loop, by the clock, so that it chooses how many threads to take."""

    def timed() -> float:
        trainer = Trainer(system, data, None, lambda event: None, budget=f"{seconds}s", evaluations=1, **options)
        trainer.validation = lambda system: (0.0, "none", {})  # type: ignore[assignment]  # the peers have none either
        trainer.train()
        return trainer.seconds / trainer.step

    return timed


def loop(step: Callable[[Tensor], None], data: Data, steps: int, batch_size: int) -> Timed:
    """Seconds a step of a plain loop over shuffled in-memory examples, centred."""
    assert data.train.x is not None
    x = data.train.x.float() / 127.5 - 1

    def timed() -> float:
        started = time.perf_counter()
        for _ in range(steps):
            step(x[torch.randint(len(x), (batch_size,))])
        return (time.perf_counter() - started) / steps

    return timed


# --- the cases --------------------------------------------------------------------------------------


def unet(precision: str, peer_precision: str, asked: float | None) -> Pair:
    """A training step of `ddpm` beside diffusers' UNet2DModel of equal depth, widths and number of parameters."""
    from diffusers import DDPMScheduler, UNet2DModel

    data, batch, steps = images(256, (3, 32, 32), 256), 16, 3
    ours = catalog.build("ddpm", data.space, channels=64, blocks=2, attention=16)
    plain, attending = "DownBlock2D", "AttnDownBlock2D"
    model = UNet2DModel(
        32, 3, 3,
        block_out_channels=(64, 128, 128, 128),
        down_block_types=(plain, attending, plain, plain),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    assert count(ours.net) == count(model), (count(ours.net), count(model))
    scheduler, optimizer = DDPMScheduler(), torch.optim.Adam(model.parameters(), 2e-4)

    def step(x: Tensor) -> None:
        noise, t = torch.randn_like(x), torch.randint(1000, (len(x),))
        with torch.autocast("cpu", torch.bfloat16, enabled=peer_precision == "bf16"):
            predicted = model(scheduler.add_noise(x, noise, t), t).sample
            loss = F.mse_loss(predicted, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    what = f"ddpm training step, 32x32x3, batch {batch}, {count(model):,} parameters, {precision}"
    return Pair(
        training(ours, data, 2.5, batch_size=batch, precision=precision),
        loop(step, data, steps, batch),
        f"{what} | diffusers UNet2DModel, heads of width 8, {peer_precision}",
        asked,
    )


def ddim() -> Pair:
    """100 deterministic steps of 256 points in two dimensions, with the same network."""
    from diffusers import DDIMScheduler

    space = Space("table", (2,), columns=(Column("x"), Column("y")))
    ours = catalog.build("ddpm", space, sampling_steps=100).eval()
    network, scheduler = ours.net, DDIMScheduler(clip_sample=False)

    def mine() -> float:
        started = time.perf_counter()
        ours.sample_encoded(256)
        return time.perf_counter() - started

    @torch.no_grad()
    def theirs() -> float:
        started = time.perf_counter()
        scheduler.set_timesteps(100)
        x = torch.randn(256, 2)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t.expand(256) / 1000), t, x).prev_sample
        return time.perf_counter() - started

    return Pair(mine, theirs, "ddim, 100 steps of 256 points in 2-D, the same network | diffusers DDIMScheduler", 0.75)


def dcgan(precision: str, asked: float | None) -> Pair:
    """One step of both players beside the usual loop with copies of the same networks."""
    data, batch, steps, latent = images(2048, (3, 32, 32), 256), 64, 5, 100
    ours = catalog.build("dcgan", data.space, width=64, latent=latent)
    generator = plain_generator(ours.generator)
    critic = nn.Sequential(*copy.deepcopy(ours.critic.layers), nn.Flatten(0))
    for net in (generator, critic):
        net.to(memory_format=torch.contiguous_format)
    optimizers = [torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (critic, generator)]

    def bce(score: Tensor, target: float) -> Tensor:
        return F.binary_cross_entropy_with_logits(score, torch.full_like(score, target))

    def step(x: Tensor) -> None:
        critic.zero_grad()
        bce(critic(x), 1.0).backward()
        fake = generator(torch.randn(len(x), latent))
        bce(critic(fake.detach()), 0.0).backward()
        optimizers[0].step()
        generator.zero_grad()
        bce(critic(fake), 1.0).backward()
        optimizers[1].step()

    return Pair(
        training(ours, data, 2.5, batch_size=batch, precision=precision),
        loop(step, data, steps, batch),
        f"dcgan, steps of both players, 32x32x3, batch {batch}, width 64, {precision} | plain loop, same networks, 32",
        asked,
    )


def plain_generator(net: ConvGenerator) -> nn.Module:
    """The same layers as they are usually written."""
    return copy.deepcopy(nn.Sequential(net.project, nn.Unflatten(1, net.start), net.layers))


def vae() -> Pair:
    """Epochs of the MLP VAE beside pythae's VAE in its trainer."""
    from pythae.models import VAE, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    logging.disable(logging.INFO)
    n, batch = 6400, 64
    x = (np.random.default_rng(0).random((n + 200, 28, 28)) < 0.3).astype(np.uint8)
    data = load_data(x)
    sizes = {"network": "mlp", "width": 32, "depth": 1, "latent": 16, "dropout": 0.0, "likelihood": "auto"}
    ours = catalog.build("vae", data.space, **sizes)
    model = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=16, reconstruction_loss="bce"))
    assert data.train.x is not None
    examples = data.train.x.float()

    def theirs() -> float:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            config = BaseTrainerConfig(
                output_dir=folder, num_epochs=1, per_device_train_batch_size=batch, learning_rate=1e-3, no_cuda=True
            )
            trainer = BaseTrainer(model, examples_of(examples), training_config=config)
            started = time.perf_counter()
            trainer.train()
            return (time.perf_counter() - started) / (len(examples) // batch)

    what = f"vae (MLP) in the whole trainer, 28x28, batch {batch}, {count(ours):,} parameters"
    return Pair(
        training(ours, data, 1.0, batch_size=batch),
        theirs,
        f"{what} | pythae's trainer, {count(model):,} parameters",
        0.75,
    )


def examples_of(x: Tensor) -> Any:
    from pythae.data.datasets import BaseDataset

    return BaseDataset(x, torch.zeros(len(x)))


CASES: dict[str, Callable[[], Pair]] = {
    "unet-fp32": lambda: unet("32", "32", 0.85),
    "unet-bf16": lambda: unet("bf16", "bf16", 0.65),
    "unet-bf16-against-fp32": lambda: unet("bf16", "32", None),
    "ddim": ddim,
    "dcgan-bf16": lambda: dcgan("bf16", 0.45),
    "dcgan-fp32": lambda: dcgan("32", None),
    "vae": vae,
}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def measure(pair: Pair, rounds: int) -> dict[str, Any]:
    """The medians of both sides and of their ratio in each round; the first round only warms up."""
    times = []
    for _ in range(rounds + 1):
        mine = pair.ours()  # keeps freed memory, which a peer does not
        keep_freed_memory(False)
        times.append((mine, pair.peer()))
    times = times[1:]
    ratios = sorted(ours / peer for ours, peer in times)
    ours, peer = (statistics.median(side) * 1e3 for side in zip(*times, strict=True))
    what, against = pair.what.split(" | ")
    return {
        "what": what, "peer": against, "ours_ms": ours, "peer_ms": peer, "ratio": statistics.median(ratios),
        "lowest": ratios[0], "highest": ratios[-1], "asked": pair.asked,
    }  # fmt: skip


def page(rows: dict[str, dict[str, Any]]) -> str:
    """The table, in Markdown."""
    lines = [
        f"| {row['what']} | {row['peer']} | {row['ours_ms']:.3g} | {row['peer_ms']:.3g} | "
        f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f}) | {row['asked'] or '–'} |"
        for row in rows.values()
    ]
    head = ["| here | peer | ms | peer's ms | ratio (rounds) | asked, at most |", "|---|---|---|---|---|---|"]
    return "\n".join(["# Systems of Table 1 beside peers", "", f"On {machine()}.", "", *head, *lines]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    path = RESULTS / "table1.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() and given.cases else {}
    for name in given.cases or CASES:
        if "bf16" in name and not computes_in_bf16(torch.device("cpu")):
            print(f"{name}: not measured, as this processor has no units for bf16", flush=True)
            continue
        torch.manual_seed(0)
        rows[name] = measure(CASES[name](), given.rounds)
        print(f"{name}: {rows[name]['ratio']:.2f} of the peer's time, asked {rows[name]['asked']}", flush=True)
    asked = [row for row in rows.values() if row["asked"]]
    met = sum(row["ratio"] <= row["asked"] for row in asked)
    write_result("table1", f"{met} of {len(asked)} ratios as asked", {"machine": machine(), "rows": rows})
    (RESULTS / "table1.md").write_text(page(rows))


if __name__ == "__main__":
    main()
