"""Losses of adversarial games as pure functions of the critic's outputs (survey 4.1.1, Fig. 5a).

`real` and `fake` are the critic's raw outputs `(B,)` on data and on samples: logits, before any
sigmoid. Every function returns the scalar that its player minimises, a mean over examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


class Game(NamedTuple):
    """What each of the two players minimises, and what the critic must keep to.

    `relative`: the generator's loss depends on the critic's outputs on real data too.
    `clipped`: the critic's weights are clipped after each of its steps.
    `penalised`: the critic's loss carries `gradient_penalty`, which batch statistics would void.
    `log_ratio`: of the best critic's outputs, ln p_data / p_generator; None where they do not tell.
    """

    discriminator: Loss
    generator: Loss
    relative: bool = False
    clipped: bool = False
    penalised: bool = False
    log_ratio: Callable[[Tensor], Tensor] | None = None


def logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-E ln D(x) - E ln(1 - D(G(z))), D the sigmoid of the output (survey Eq. 17); at best 2 ln 2 - 2 JS."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def minimax_generator(real: Tensor, fake: Tensor) -> Tensor:
    """E ln(1 - D(G(z))) (survey Eq. 17): its gradient vanishes as the discriminator gets better."""
    return -F.softplus(fake).mean()


def non_saturating_generator(real: Tensor, fake: Tensor) -> Tensor:
    """-E ln D(G(z)) (Goodfellow et al., 2014)."""
    return F.softplus(-fake).mean()


def wasserstein_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """E D(G(z)) - E D(x): minus the Wasserstein-1 distance for the best 1-Lipschitz D (survey Eq. 19b)."""
    return fake.mean() - real.mean()


def linear_generator(real: Tensor, fake: Tensor) -> Tensor:
    """-E D(G(z)) (Arjovsky et al., 2017; also with the hinge)."""
    return -fake.mean()


def least_squares_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """1/2 E (D(x) - 1)^2 + 1/2 E D(G(z))^2 (Mao et al., 2017)."""
    return 0.5 * ((real - 1) ** 2).mean() + 0.5 * (fake**2).mean()


def least_squares_generator(real: Tensor, fake: Tensor) -> Tensor:
    """1/2 E (D(G(z)) - 1)^2 (Mao et al., 2017)."""
    return 0.5 * ((fake - 1) ** 2).mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))) (Lim and Ye, 2017); at best 2 - 2 total variation."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def relativistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Real ones should look more real than the average fake, fakes less than the average real one.

    The relativistic average loss (Jolicoeur-Martineau, 2018). The averages are over the batch at hand,
    so it is no mean over examples and depends on the batch size.
    """
    return F.softplus(fake.mean() - real).mean() + F.softplus(fake - real.mean()).mean()


def relativistic_generator(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss with the parts exchanged (Jolicoeur-Martineau, 2018)."""
    return relativistic_discriminator(fake, real)


GAMES: dict[str, Game] = {
    "non-saturating": Game(logistic_discriminator, non_saturating_generator, log_ratio=torch.clone),
    "minimax": Game(logistic_discriminator, minimax_generator, log_ratio=torch.clone),
    "wasserstein": Game(wasserstein_discriminator, linear_generator, clipped=True),
    "wasserstein-gp": Game(wasserstein_discriminator, linear_generator, penalised=True),
    "least-squares": Game(
        least_squares_discriminator, least_squares_generator, log_ratio=lambda score: torch.logit(score, eps=1e-6)
    ),
    "hinge": Game(hinge_discriminator, linear_generator),
    "relativistic": Game(relativistic_discriminator, relativistic_generator, relative=True),
}


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """E (|grad D(y)| - 1)^2, y uniform on the line between each pair `(B, ...)` (Gulrajani et al., 2017).

    Differentiable in the critic's parameters (a double backward). The critic must treat examples
    independently: no batch statistics.
    """
    weight = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device, dtype=real.dtype)
    between = torch.lerp(fake.detach(), real, weight).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()


def r1_penalty(score: Tensor, x: Tensor) -> Tensor:
    """E |grad D(x)|^2 of outputs `(B,)` on data `x` `(B, ...)` that required a gradient (Mescheder et al., 2018).

    Differentiable in the critic's parameters (a double backward).
    """
    (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def path_lengths(images: Tensor, styles: Tensor) -> Tensor:
    """|J^T y| `(B,)`, J the Jacobian of `images` `(B, C, H, W)` by `styles` `(B, layers, latent)`, y random images.

    y is normal of variance 1 / (H W). Of the layers' squared lengths it is the mean (Karras et al., 2020, 3.2).
    Differentiable in the generator's parameters (a double backward).
    """
    noise = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * noise).sum(), styles, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


def orthogonal_penalty(weight: Tensor) -> Tensor:
    """|W W^T (1 - I)|_F^2, W `(out, ...)` with a filter a row: equal lengths are free (Brock et al., 2019, Eq. 3)."""
    rows = weight.flatten(1)
    products = rows @ rows.T
    return products.square().sum() - products.diagonal().square().sum()


def signs_of_collapse(real: Tensor, fake: Tensor, real_score: Tensor, fake_score: Tensor) -> dict[str, float]:
    """For `monitor`: share of near-duplicates among samples, and the critic's mean outputs and their gap."""
    on_real, on_fake = real_score.mean().item(), fake_score.mean().item()
    gap = {"critic_real": on_real, "critic_fake": on_fake, "critic_gap": on_real - on_fake}
    return {"duplicates": duplicate_rate(fake, real).item(), **gap}


@torch.no_grad()
def clip_weights(critic: torch.nn.Module, bound: float) -> None:
    """Every parameter into [-bound, bound] (Arjovsky et al., 2017)."""
    for parameter in critic.parameters():
        parameter.clamp_(-bound, bound)


def duplicate_rate(samples: Tensor, data: Tensor) -> Tensor:
    """Share of `samples` `(N, ...)` that nearly repeat another one: a sign of mode collapse.

    "Nearly": not farther from it than a tenth of the median distance between an example of `data`
    `(M, ...)` and its nearest neighbour there. Cost N^2 + M^2; use some hundreds of each.
    """
    return (_nearest(samples) <= 0.1 * _nearest(data).median()).float().mean()


def _nearest(x: Tensor) -> Tensor:
    flat = x.flatten(1).float()
    distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.fill_diagonal_(torch.inf).min(1).values
