"""Deep convolutional generative adversarial network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fivefold.nets.adversarial import critic_net, generator_net
from fivefold.options import option
from fivefold.system import Batch, Density, System, Update
from fivefold.tools import games
from fivefold.tools.distributions import truncated_normal
from fivefold.tools.scaling import centre, uncentre


class DCGAN(System):
    """Deep convolutional GAN (survey 4.2; Radford et al., 2016).

    A generator and a critic play one of the games of `fivefold.tools.games` (survey 4.1.1): strided
    convolutions with batch norm on images, multi-layer perceptrons on tables. It samples in one pass
    and has no density.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.NONE, "table": Density.NONE}
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"truncation": (0.25, 0.5, 1.0, 2.0, 5.0)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"ema": 0.995},
        "wgan": {"game": "wasserstein", "critics": 5, "lr": 2e-4, "beta1": 0.0},
        "wgan-gp": {"game": "wasserstein-gp", "critics": 5, "lr": 1e-4, "beta1": 0.0},
        # The paper's CIFAR-10 network is the one it trained on ImageNet.
        "cifar10": {
            "layout": "alternating", "width": 128, "latent": 256, "batch_size": 128, "lr": 2e-4, "beta1": 0.5,
            "ema": 0.0,
        },
        "imagenet32": {
            "layout": "alternating", "width": 128, "latent": 256, "batch_size": 128, "lr": 2e-4, "beta1": 0.5,
            "ema": 0.0,
        },
        "svhn": {
            "layout": "strided", "width": 64, "latent": 100, "batch_size": 64, "lr": 5e-4, "beta1": 0.5, "ema": 0.0,
        },
        "lsun64": {
            "layout": "strided", "width": 128, "latent": 100, "batch_size": 128, "lr": 2e-4, "beta1": 0.5, "ema": 0.0,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "cifar10": (11_276_800, "the weights of ImageNet's network that the authors released"),
        "imagenet32": (11_276_800, "the weights that the authors released, counted"),
        "svhn": (2_479_840, "the weights that the authors released, counted"),
        "lsun64": (36_118_528, "the authors' program for faces of that size: its weights, counted from their shapes"),
    }

    game: str = option(
        "non-saturating", "what the players minimise (survey Fig. 5a)", choices=tuple(games.GAMES),
        tune=("non-saturating", "hinge", "least-squares", "relativistic"),
    )  # fmt: skip
    latent: int = option(64, "width of the generator's code", least=1, tune=(2, 128), log=True)
    layout: Literal["fine", "strided", "alternating"] = option(
        "fine",
        "of the layers on images: fine ends with one at full size; strided and alternating are the paper's, of "
        "5x5 kernels that all double or halve the sides, and of 3x3 ones of which every other does",
    )
    width: int = option(
        32,
        "channels of the largest features, doubled at each halving (a quarter of the units of a layer on tables)",
        least=1,
        tune=(8, 256),
        log=True,
    )
    critics: int = option(
        0,
        "steps of the critic for one of the generator, on the same examples against new fakes; 0 for one on "
        "images and three on tables, where one loses modes",
        least=0,
    )
    batch_norm: bool = option(
        True, "batch norm in both convolutional networks; a critic under a gradient penalty never has it"
    )
    weight_clip: float = option(0.01, "bound on the critic's weights, for wasserstein", least=0)
    penalty: float = option(10.0, "weight of the gradient penalty, for wasserstein-gp", least=0)
    truncation: float = option(
        0.0,
        "largest absolute value of a sample's latent code; others are drawn again, as BigGAN does. 0 for no bound",
        least=0,
    )
    lr = 2e-4
    beta1: float = option(
        0.5,
        "decay of Adam's mean of gradients: 0.5 as in the paper, 0 for Wasserstein games",
        least=0,
        section="optimizers",
    )

    def build(self) -> None:
        super().build()
        self.rules = games.GAMES[self.game]
        self.critics = self.critics or {"image": 1, "table": 3}[self.space.kind]
        self.generator = generator_net(self.space, self.latent, self.width, self.batch_norm, self.layout)
        self.critic = critic_net(self.space, self.width, self.batch_norm and not self.rules.penalised, self.layout)

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        real, condition = centre(batch.x, self.space), batch.condition
        for turn in range(self.critics):
            with torch.set_grad_enabled(turn == self.critics - 1):  # the last fakes are the generator's own turn's too
                fake = self._generate(len(real), condition)
            yield self._critic_update(real, fake.detach(), condition)
            if self.rules.clipped:
                games.clip_weights(self.critic, self.weight_clip)
        yield self._generator_update(real, fake, condition)

    def _critic_update(self, real: Tensor, fake: Tensor, condition: Tensor | None) -> Update:
        real_score, fake_score = self.critic(real, condition), self.critic(fake, condition)
        loss = self.rules.discriminator(real_score, fake_score)
        if self.rules.penalised:
            loss = loss + self.penalty * games.gradient_penalty(lambda x: self.critic(x, condition), real, fake)
        return Update(self.critic, loss, {"real": real_score.mean(), "fake": fake_score.mean()})

    def _generator_update(self, real: Tensor, fake: Tensor, condition: Tensor | None) -> Update:
        fake_score = self.critic(fake, condition)
        with torch.no_grad():  # the generator does not enter the critic's value of the data
            real_score = self.critic(real, condition) if self.rules.relative else fake_score.detach()
        loss = self.rules.generator(real_score, fake_score)
        return Update(self.generator, loss, {"fooled": (fake_score > 0).float().mean()})

    def _generate(self, n: int, condition: Tensor | None) -> Tensor:
        return self.generator(torch.randn(n, self.latent, device=self.device), condition)

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """Adam for both players."""
        return {
            player: torch.optim.Adam(player.parameters(), self.lr, (self.beta1, 0.999), fused=True)
            for player in (self.generator, self.critic)
        }

    def networks(self) -> list[nn.Module]:
        """Not the critic under a gradient penalty: compiled code has no double backward."""
        return [self.generator] if self.rules.penalised else [self.generator, self.critic]

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        z = truncated_normal((n, self.latent), self.truncation or math.inf, self.device)
        return uncentre(self.generator(z, condition), self.space)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Share of near-duplicates among samples, and the critic's mean outputs and their gap."""
        real, condition = centre(batch.x, self.space), batch.condition
        fake = self._generate(len(real), condition)
        return games.signs_of_collapse(real, fake, self.critic(real, condition), self.critic(fake, condition))
