"""Variational autoencoders of one code: prior, posterior and decoder are slots."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.errors import Unfit
from fivefold.nets.coders import ConvDecoder, ConvEncoder, Maps, MLPDecoder, MLPEncoder, Output
from fivefold.nets.heads import LIKELIHOOD, LIKELIHOOD_HELP, Head
from fivefold.nets.norm import frozen
from fivefold.options import Need, class_in, depth_option, dropout_option, option, slot, width_option
from fivefold.space import Batch, Space
from fivefold.system import Density, System
from fivefold.tools.mcmc import FIRST, Move, hamiltonian
from fivefold.tools.schedule import warm_cosine
from fivefold.vae._bound import Terms, VariationalSystem, kl_to_standard_normal, repeat, repeat_condition
from fivefold.vae._parts import AutoregressivePrior, NetworkDecoder, StandardNormal, SystemDecoder, nats, vectors

NETWORKS = {"mlp": (MLPEncoder, MLPDecoder), "conv": (ConvEncoder, ConvDecoder)}
SMALLEST_CONV = 16  # sides of an image from which on convolutions pay
ACTIVE = 0.01  # variance of a unit's posterior mean over the data, above which it is in use (Burda et al., 2016)
FEWER = 16  # draws of z when scoring, where the decoder is a system
FEWER_STEPS = 30  # when filling in, there
FREE = 0.05  # nats a dimension that z may cost for nothing where the decoder could do without it

PRIOR = Need(
    "an exact density of real vectors",
    densities=("EXACT",),
    parts={"standard-normal": StandardNormal, "autoregressive": AutoregressivePrior},
)
POSTERIOR = Need(
    "draws of real vectors given others, with their exact densities and with gradients",
    methods=("draw",),
    densities=("EXACT",),
    without=("chooses",),
    parts={"gaussian": StandardNormal},
)
DECODER = Need(
    "an autoregressive system with an exact density of the examples given others",
    methods=("_sample_from",),
    densities=("EXACT",),
    parts={"network": NetworkDecoder},
)


class Posterior(NamedTuple):
    """What the encoder says of q(z|x): mean and log-scale `(B, latent)`; features of x for a flow, `(B, features)`."""

    mean: Tensor
    log_scale: Tensor
    features: Tensor | None


class Encoded(NamedTuple):
    """q(z|x) as a law of codes `(B, latent)`: the noise's, shifted and scaled."""

    q: Posterior
    noise: Any
    shape: tuple[int, ...]  # of a code as the noise has it

    def draw(self) -> Tensor:
        noise, _ = self.noise.draw(len(self.q.mean), self.q.features)
        return self.q.mean + self.q.log_scale.exp() * noise.flatten(1)

    def log_prob(self, z: Tensor) -> Tensor:
        noise = (z - self.q.mean) * torch.exp(-self.q.log_scale)
        return nats(self.noise._log_prob(noise.view(-1, *self.shape), self.q.features)) - self.q.log_scale.sum(1)


class VAESystem(VariationalSystem):
    """An encoder of q(z|x), a prior p(z) and a decoder p(x|z), trained together by a bound on ln p(x).

    - z = mean + scale * u, where u is standard normal, or drawn from a flow that is conditioned on features of x.
    - p(z) is a standard normal, or any system with an exact density of real vectors; it sees the condition.
    - p(x|z) is a network whose outputs are independent given z, or any autoregressive system, conditioned on what a
      network makes of z and the condition: on maps of the image's size, or on a vector.

    Where both laws of z are Gaussian their divergence is taken in closed form (survey Eq. 13).
    """

    densities: ClassVar[dict[str, Density]] = {
        "image": Density.LOWER_BOUND,
        "table": Density.LOWER_BOUND,
        "text": Density.LOWER_BOUND,
        "audio": Density.LOWER_BOUND,
    }

    latent: int = option(16, "dimensions of z", least=1, tune=(2, 128), log=True)
    network: Literal["auto", "mlp", "conv"] = option(
        "auto", "of encoder and decoder; auto takes conv for images of at least 16x16 pixels"
    )
    width: int = width_option(16, "channels at full size, or a sixteenth of the units of a hidden layer", tune=(8, 64))
    depth: int = depth_option(2, "hidden layers, or residual blocks at the smallest size", least=0, tune=(1, 4))
    dropout: float = dropout_option(0.1, "share of hidden features dropped in training", tune=(0.0, 0.3))
    prior: Any = option(slot("standard-normal"), "of z", needs=PRIOR)
    posterior: Any = option(slot("gaussian"), "of z given an example, after shift and scale", needs=POSTERIOR)
    decoder: Any = option(slot("network"), "of an example given z", needs=DECODER)
    maps: int = option(16, "channels that a decoder that is a system sees of z", least=1, tune=(4, 64), log=True)
    likelihood: Any = option(slot("logistic-mixture", mixtures=3), LIKELIHOOD_HELP, needs=LIKELIHOOD)

    # --- parts ----------------------------------------------------------------------------------

    def build(self) -> None:
        self.codes = self.code_space().conditioned_on(self.space.condition)
        self.latent = self.codes.dims
        by_system, flexible = self._is_system("decoder", DECODER), self._is_system("posterior", POSTERIOR)
        if by_system:
            self.free_bits = FREE if self.free_bits is None else self.free_bits
            self.score_samples = self.score_samples or FEWER
            self.fill_steps = FEWER_STEPS
        features = 2 * self.latent if flexible else 0
        head = None if by_system else Head(self.space, self.fill("likelihood", self.space))
        seen = self._seen() if by_system else self.space
        self.encoder = self.make_encoder(2 * self.latent + features)
        net = self.make_decoder(seen.conditioned_on(self.space.condition), head or Maps())
        usual: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        self.prior = self.fill("prior", self.codes, partial(_of, self.codes), **usual)
        noise = self.codes.conditioned_on(vectors(features) if features else None)
        self.posterior = self.fill("posterior", noise, partial(_of, noise), **usual)
        if head is None:
            self.decoder = SystemDecoder(net, self.fill("decoder", self.space.conditioned_on(seen), **usual))
        else:
            self.decoder = NetworkDecoder(net, head)
        self.is_closed = type(self.prior) is type(self.posterior) is StandardNormal

    def _is_system(self, name: str, need: Need) -> bool:
        return issubclass(class_in(self.arguments[name], need), System)

    def _seen(self) -> Space:
        """What a decoder that is a system is conditioned on."""
        if self.space.kind == "image":
            return Space("image", (self.maps, *self.space.shape[1:]), dtype="float32")
        return vectors(self.maps)

    def code_space(self) -> Space:
        """Of z, without a condition."""
        return vectors(self.latent)

    def make_encoder(self, outputs: int) -> nn.Module:
        """A network of an example and the condition, to `(B, outputs)`."""
        return NETWORKS[self._kind()][0](self.space, outputs, self.width, self.depth, self.dropout)

    def make_decoder(self, space: Space, head: Output) -> nn.Module:
        """A network of z `(B, latent)` and the condition, to the parameters of a head of `space`."""
        return NETWORKS[self._kind()][1](space, self.latent, head, self.width, self.depth, self.dropout)

    def _kind(self) -> str:
        if self.network == "auto":
            return "conv" if self.space.kind == "image" and min(self.space.shape[1:]) >= SMALLEST_CONV else "mlp"
        if self.network == "conv" and self.space.kind != "image":
            raise Unfit(f"network 'conv' needs images, not {self.space.kind}; take 'mlp'")
        return self.network

    # --- the bound ------------------------------------------------------------------------------

    def encoded(self, x: Tensor, condition: Tensor | None) -> Posterior:
        """What the encoder says of q(z|x)."""
        mean, log_scale, features = self.encoder(x, condition).float().tensor_split([self.latent, 2 * self.latent], 1)
        features = F.layer_norm(features, features.shape[1:]) if features.shape[1] else None
        return Posterior(mean, log_scale.clamp(-7.0, 5.0), features)

    def bound(self, x: Tensor, condition: Tensor | None) -> Callable[[int], Terms]:
        return partial(self._terms, x, condition, self.encoded(x, condition))

    def _terms(self, x: Tensor, condition: Tensor | None, q: Posterior, draws: int) -> Terms:
        """The terms of `draws` of z: q's density is that of the noise, less the log-determinant of the scale."""
        x, condition = repeat(x, draws), repeat_condition(condition, draws)
        u, log_noise = self.posterior.draw(len(x), repeat_condition(q.features, draws))
        z = repeat(q.mean, draws) + repeat(q.log_scale, draws).exp() * u.flatten(1)

        def log_prior() -> Tensor:
            return self.log_prior(z, condition).view(draws, -1)

        def log_posterior() -> Tensor:
            return log_noise.view(draws, -1) - q.log_scale.sum(1)

        def divergence() -> Tensor:
            return kl_to_standard_normal(q.mean, q.log_scale).T.unsqueeze(1)

        log_likelihood = self.decoder.log_prob(x, z, condition).view(draws, -1)
        return Terms(log_likelihood, log_prior, log_posterior, divergence if self.is_closed else None)

    def log_prior(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """ln p(z) in nats `(B,)` of codes `(B, latent)`."""
        return nats(self.prior._log_prob(z.view(-1, *self.codes.shape), condition))

    @property
    def numbers(self) -> int:
        return self.decoder.numbers

    def learning_rate(self, progress: float) -> float:
        """Constant for half the budget, then down to a hundredth along a cosine."""
        return warm_cosine(progress, warmup=0.0, level=0.5)

    # --- what is missing --------------------------------------------------------------------------

    def proposal(self, x: Tensor, condition: Tensor | None) -> Encoded:
        return Encoded(self.encoded(x, condition), self.posterior, self.codes.shape)

    def log_joint(self, x: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        return self.decoder.log_prob(x, z, condition) + self.log_prior(z, condition)

    def complete(self, x: Tensor, known: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        return self.decoder.complete(x, known, z, condition)

    def settle(self, z: Tensor, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        """Hamiltonian Monte Carlo, where the decoder has a density of a part of x: then no encoder need be good."""
        decoder = self.decoder
        if not isinstance(decoder, NetworkDecoder):
            return z

        def energy(z: Tensor) -> Tensor:
            return -self.log_prior(z, condition) - decoder.log_known(x, known, z, condition)

        steps = max(1, self.fill_steps // 10)
        with frozen(self):
            return hamiltonian(energy, z, steps, Move(FIRST, warm_up=steps)).state

    @property
    def filling(self) -> str:
        if isinstance(self.decoder, NetworkDecoder):
            return super().filling
        return f"{super().filling}; given a code by its decoder: {self.decoder.system.filling}"

    # --- samples and codes ----------------------------------------------------------------------

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return self.decoder.sample(self.prior._sample(n, condition).flatten(1), condition)

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.encoded(x, condition).mean

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return self.decoder.mode(z, condition)

    def _rate_distortion(self, x: Tensor, condition: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """One level: what z costs and the reconstruction."""
        return [(self.terms(x, condition).rate, self._decode(self._encode(x, condition), condition))]

    @property
    def sample_evaluations(self) -> int:
        return self.prior.sample_evaluations + self.decoder.evaluations

    def networks(self) -> list[nn.Module]:
        return [self.encoder, self.decoder.net]

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Against posterior collapse: what z costs, by unit where it is known, and units in use."""
        terms = self.terms(*batch)
        found = {
            "elbo": terms.elbo.mean().item() + self.space.log_det(batch.x).mean().item(),
            "kl": terms.rate.mean().item(),
            "active_units": float((self._encode(*batch).var(0, correction=0) > ACTIVE).sum()),
            "units": float(self.latent),
        }
        if terms.divergence is None:
            return found | {"kl_per_unit": found["kl"] / self.latent}
        by_unit = terms.divergence.mean((1, 2))
        return found | {"kl_largest_unit": by_unit.max().item(), "kl_median_unit": by_unit.median().item()}


def _of(space: Space, cls: type[nn.Module], **options: Any) -> nn.Module:
    """A part of codes that is no system."""
    return cls(space, **options)
