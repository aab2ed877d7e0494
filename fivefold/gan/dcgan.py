"""Deep convolutional generative adversarial network."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

from fivefold.gan._system import Truncated
from fivefold.nets.adversarial import critic_net, generator_net
from fivefold.options import option, width_option
from fivefold.system import Density


class DCGAN(Truncated):
    """Deep convolutional GAN (survey 4.2; Radford et al., 2016).

    A generator and a critic play one of the games of `fivefold.tools.games` (survey 4.1.1): strided
    convolutions with batch norm on images, multi-layer perceptrons on tables. It samples in one pass
    and has no density.
    """

    densities: ClassVar[dict[str, Density]] = {"image": Density.NONE, "table": Density.NONE}
    reuses_fakes: ClassVar[bool] = True
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

    layout: Literal["fine", "strided", "alternating"] = option(
        "fine", "of the layers on images: fine ends with one at full size; strided and alternating are the paper's, of "
        "5x5 kernels that all double or halve the sides, and of 3x3 ones of which every other does",
    )  # fmt: skip
    width: int = width_option(
        32, "of the largest features, doubled at each halving (tables: a quarter of a layer's units)", tune=(8, 256)
    )
    critics: int = option(
        0, "steps of the critic for one of the generator, on the same examples against new fakes; 0 for one on images "
        "and three on tables, where one loses modes", least=0,
    )  # fmt: skip
    batch_norm: bool = option(
        True, "batch norm in both convolutional networks; a critic under a gradient penalty never has it"
    )
    beta1 = 0.5  # as in the paper; 0 for Wasserstein games

    def build(self) -> None:
        self.critics = self.critics or {"image": 1, "table": 3}[self.space.kind]
        super().build()

    def players(self) -> tuple[nn.Module, nn.Module]:
        norm = self.batch_norm and not self.rules.penalised
        return (
            generator_net(self.space, self.latent, self.width, self.batch_norm, self.layout),
            critic_net(self.space, self.width, norm, self.layout),
        )
