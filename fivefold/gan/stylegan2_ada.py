"""StyleGAN2 with adaptive discriminator augmentation."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.gan._system import GANSystem, Held, Stats
from fivefold.nets.adversarial import halvings
from fivefold.nets.stylegan import ResidualCritic, StyleGenerator, widths
from fivefold.options import option, width_option
from fivefold.system import Batch, Update
from fivefold.tools import games
from fivefold.tools.augment import augment
from fivefold.tools.schedule import warm_cosine

ADJUST_EVERY = 4  # steps between moves of the augmentation's probability
W_RATE, PATH_RATE = 0.005, 0.01  # of the running means of styles and path lengths


class StyleGAN2ADA(GANSystem):
    """StyleGAN2 with adaptive augmentation (survey 4.2; Karras et al., 2020).

    A mapping network turns the latent code into a style w, which scales the weights of every layer of the generator;
    demodulation takes the scale out of the result again. The critic (residual, with the deviation within the batch)
    is held by R1, the generator by path-length regularisation, both every few steps (lazy). All that the critic sees
    is augmented, with a probability that rises while it overfits: while E sign D(x) on the data is above `target`.
    Truncation moves styles towards their mean.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.995},
        "cifar10": {
            "latent": 512, "layers": 2, "width": 512, "group": 32, "mixing": 0.0, "r1_weight": 0.01, "r1_every": 16,
            "path_weight": 0.0, "ada_examples": 500_000, "batch_size": 64, "lr": 0.0025, "decay": 0.0, "ema": 0.9999,
        },
        "ffhq256": {
            "latent": 512, "layers": 8, "width": 64, "residual": True, "mixing": 0.9, "r1_weight": 1.0, "r1_every": 16,
            "path_every": 4, "decay": 0.0,
            "ada_examples": 500_000, "batch_size": 64, "lr": 0.0025, "ema": 0.998,
        },
        "ffhq1024": {
            "latent": 512, "layers": 8, "width": 32, "residual": True, "mixing": 0.9, "r1_weight": 10.0, "r1_every": 16,
            "path_every": 4, "decay": 0.0,
            "ada_examples": 0, "batch_size": 32, "lr": 0.002, "ema": 0.998,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "ffhq1024": (30_370_060, "the summary that the authors' program prints for configuration F", "generator")
    }
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"truncation": (0.25, 0.5, 0.75, 1.0)}

    generator: StyleGenerator
    steps: Tensor
    w_mean: Tensor
    path_mean: Tensor
    probability: Tensor
    signs: Tensor

    layers: int = option(2, "of the mapping network", least=1, tune=(1, 16))
    width: int = width_option(16, "channels at full resolution, doubled at each halving", tune=(8, 256))
    widest: int = option(512, "the most channels that a layer has", least=0)
    residual: bool = option(False, "whether the critic's blocks are")
    group: int = option(4, "examples that the critic's deviation within the batch is taken over; 1 for none", least=0)
    mixing: float = option(0.5, "probability that the layers from a random one on take another code's style", least=0)
    r1_weight: float = option(2.0, "of the critic's squared gradient on the data", least=0)
    r1_every: int = option(4, "how many steps there are for one with that penalty", least=0)
    path_weight: float = option(2.0, "of the squared deviation of path lengths from their mean", least=0)
    path_every: int = option(8, "how many steps there are for one with that penalty", least=0)
    target: float = option(0.6, "E sign D(x) on the data that the augmentation's probability is moved towards", least=0)
    ada_examples: int = option(200_000, "examples in which that probability can go from 0 to 1; 0 holds it", least=0)
    augmentation: float = option(0.0, "the probability at the start", least=0)
    decay: float = option(
        0.5, "share of the budget over which the learning rates fall at the end; 0 as in the paper", least=0, below=1
    )
    truncation: float = option(1.0, "psi: samples have styles mean + psi (w - mean); 1 for all of them", least=0)
    latent = 16
    lr = 2e-2  # large, which needs the decay
    beta2 = 0.99

    def players(self) -> tuple[nn.Module, nn.Module]:
        channels = widths(self.width, self.widest, halvings(self.space))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("w_mean", torch.zeros(self.latent))
        self.register_buffer("path_mean", torch.zeros(()))  # 0 until the first measurement
        self.register_buffer("probability", torch.tensor(self.augmentation))  # of each augmentation
        self.register_buffer("signs", torch.zeros(2))  # of D on data since the probability moved: their sum, how many
        return (
            StyleGenerator(self.space, self.latent, self.layers, channels),
            ResidualCritic(self.space, channels, self.group, self.residual),
        )

    def generate(self, n: int, condition: Tensor | None) -> Tensor:
        return self.generator.synthesis(self._styles(n, condition)[0])

    def show(self, x: Tensor) -> Tensor:
        return augment(x, self.probability)

    def judge_both(self, real: Tensor, fake: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """In one pass, each with its own deviation within the batch."""
        both = None if condition is None else torch.cat([condition, condition])
        real_score, fake_score = self.critic(torch.cat([real, fake]), both, batches=2).chunk(2)
        return real_score, fake_score

    def needs_slope(self) -> bool:
        return self.r1_weight > 0 and int(self.steps) % self.r1_every == 0

    def critic_penalty(self, real: Tensor, fake: Tensor, on_real: Tensor, condition: Tensor | None) -> Held:
        """Now and then the gradient on real examples, as they were shown, held small (R1)."""
        penalty, _ = super().critic_penalty(real, fake, on_real, condition)
        if self.needs_slope():  # worth `r1_every` steps
            penalty = penalty + self.r1_every * self.r1_weight / 2 * games.r1_penalty(on_real, real)
        return penalty, {"signs": _sum_and_count(on_real.detach().sign()), "augmentation": self.probability}

    def generator_update(self, real: Tensor, condition: Tensor | None, fake: Tensor | None) -> Update:
        styles, w = self._styles(len(real), condition)
        update = super().generator_update(real, condition, self.generator.synthesis(styles))
        counted = {"styles": w.detach().float().sum(0), "count": torch.tensor(float(len(w)), device=w.device)}
        return update._replace(stats={**update.stats, **counted})

    def generator_penalty(self, n: int, condition: Tensor | None) -> Held:
        """Now and then equal steps in style held to equal steps in images."""
        step = int(self.steps)
        if not self.path_weight or step % self.path_every:
            return 0.0, {}
        lengths = self._path_lengths(max(1, n // 2), condition)
        mean = self.path_mean if step else lengths.detach().mean()
        penalty = self.path_every * self.path_weight * (lengths - mean).square().mean()
        return penalty, {"paths": _sum_and_count(lengths.detach())}

    def after_critic(self, total: Stats | None) -> None:
        super().after_critic(total)
        if total is not None:
            self._adapt(total["signs"], adjust=(int(self.steps) + 1) % ADJUST_EVERY == 0)

    def after_generator(self, total: Stats | None) -> None:
        if total is not None:
            self._average(total, int(self.steps))

    def _path_lengths(self, n: int, condition: Tensor | None) -> Tensor:
        styles = self._styles(n, None if condition is None else condition[:n])[0]
        return games.path_lengths(self.generator.synthesis(styles), styles)

    def _styles(self, n: int, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Styles `(n, styles, latent)` of new codes, mixed, and the w `(n, latent)` of their first layers."""
        w = self._w(n, condition)
        if self.mixing == 0:
            return self.generator.every_layer(w), w
        return self.generator.mixed(w, self._w(n, condition), self.mixing), w

    def _w(self, n: int, condition: Tensor | None) -> Tensor:
        return self.generator.mapping(torch.randn(n, self.latent, device=self.device), condition)

    @torch.no_grad()
    def _adapt(self, signs: Tensor, adjust: bool) -> None:
        """The overfitting heuristic: more augmentation while D calls too much of the data real, less after that."""
        self.signs += signs
        if adjust and self.ada_examples:
            total, count = self.signs
            self.probability += (total / count - self.target).sign() * count / self.ada_examples
            self.probability.clamp_(0, 1)
            self.signs.zero_()

    @torch.no_grad()
    def _average(self, total: dict[str, Tensor], step: int) -> None:
        """Running means of w and of path lengths, true means at first; and the clock of what is lazy."""
        self.w_mean.lerp_(total["styles"] / total["count"], max(W_RATE, 1 / (step + 1)))
        if "paths" in total:
            length, count = total["paths"]
            self.path_mean.lerp_(length / count, max(PATH_RATE, 1 / (step // self.path_every + 1)))
        self.steps += 1

    def learning_rate(self, progress: float) -> float:
        # regularisation joins a step of the game and makes none of its own: the rates need no correction for it
        return warm_cosine(progress, warmup=0.0, level=1 - self.decay)

    def networks(self) -> list[nn.Module]:
        """Only those that are not differentiated twice: compiled code has no double backward."""
        networks: list[nn.Module] = [self.generator.mapping]
        networks += [self.generator.synthesis] if self.path_weight == 0 else []
        return networks + ([self.critic] if self.r1_weight == 0 and not self.rules.penalised else [])

    def of_codes(self, z: Tensor, condition: Tensor | None) -> Tensor:
        w = self.w_mean.lerp(self.generator.mapping(z, condition), self.truncation)
        return self.generator.synthesis(self.generator.every_layer(w))

    def monitor(self, batch: Batch) -> dict[str, float]:
        return {**super().monitor(batch), "augmentation": self.probability.item()}


def _sum_and_count(x: Tensor) -> Tensor:
    """Of values `(B,)`, in a form that can be added over micro-batches and ranks."""
    return torch.stack([x.float().sum(), torch.tensor(float(len(x)), device=x.device)])
