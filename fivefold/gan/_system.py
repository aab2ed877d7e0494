"""The base of adversarial systems: two players, the game between them, what holds them, how samples are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from fivefold.errors import OptionError
from fivefold.nets.norm import frozen
from fivefold.options import option
from fivefold.system import Batch, Density, System, Update, seeded
from fivefold.tools import games
from fivefold.tools.distributions import truncated_normal
from fivefold.tools.given import KERNEL, latent_given
from fivefold.tools.mcmc import independence_metropolis
from fivefold.tools.scaling import centre, uncentre

Stats = dict[str, Tensor]
Held = tuple[Tensor | float, Stats]  # what is added to a loss, and what is logged of it


class GANSystem(System):
    """Base of generators that learn from a critic (survey 4).

    A leaf makes the two `players`; the game is a choice by name. What holds the players is a term of their losses
    (`critic_penalty`, `generator_penalty`) or happens after their steps (`after_critic`, `after_generator`); what both
    real and made examples go through before the critic sees them is `show`, the place of augmentation.
    """

    points: ClassVar[bool] = True
    densities: ClassVar[dict[str, Density]] = {"image": Density.NONE}
    least_batch: ClassVar[int] = 64  # on fewer a game is noisier than the steps that they save mend
    reuses_fakes: ClassVar[bool] = False  # whether the critic's last fakes are those of the generator's own step

    game: str = option(
        "non-saturating", "what the players minimise (survey Fig. 5a)", choices=tuple(games.GAMES),
        tune=("non-saturating", "hinge", "least-squares", "relativistic"),
    )  # fmt: skip
    latent: int = option(64, "width of codes", least=1, tune=(2, 128), log=True)
    critics: int = option(
        1, "steps of the critic for one of the generator, on the same examples against new fakes", least=1
    )
    weight_clip: float = option(0.01, "bound on the critic's weights, for wasserstein", above=0)
    penalty: float = option(10.0, "weight of the gradient penalty, for wasserstein-gp", least=0)
    sampler: str = option(
        "generator", "what samples are: the generator's, or ends of chains of them that the critic accepts (Turner et "
        "al., 2019)", choices=("generator", "metropolis-hastings"),
    )  # fmt: skip
    chain_steps: int = option(20, "proposals of the generator for a sample of metropolis-hastings", least=1)
    lr = 2e-4
    beta1: float = option(0.0, "decay of Adam's mean of gradients", least=0, below=1, section="optimizers")
    beta2: float = option(0.999, "decay of Adam's mean of squared gradients", least=0, below=1, section="optimizers")

    def build(self) -> None:
        super().build()
        self.rules = games.GAMES[self.game]
        if self.sampler != "generator" and self.rules.log_ratio is None:
            fit = ", ".join(name for name, rules in games.GAMES.items() if rules.log_ratio)
            raise OptionError(f"the critic of --game {self.game} is no ratio of densities; {self.sampler} needs {fit}")
        self.generator, self.critic = self.players()

    # --- what a leaf writes -----------------------------------------------------------------------

    def players(self) -> tuple[nn.Module, nn.Module]:
        """The generator and the critic."""
        raise NotImplementedError

    def begin(self, progress: float) -> None:
        """Before a step: what follows progress is set, as a buffer."""

    def seen(self, x: Tensor) -> Tensor:
        """The data as the critic compares them."""
        return centre(x, self.space)

    def generate(self, n: int, condition: Tensor | None) -> Tensor:
        """`n` fakes as the critic compares them."""
        return self.generator(torch.randn(n, self.latent, device=self.device), condition)

    def judge(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The critic's output `(B,)`."""
        return self.critic(x, condition)

    def judge_both(self, real: Tensor, fake: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.judge(real, condition), self.judge(fake, condition)

    def show(self, x: Tensor) -> Tensor:
        """What the critic is shown in place of examples, real and made alike."""
        return x

    def critic_penalty(self, real: Tensor, fake: Tensor, on_real: Tensor, condition: Tensor | None) -> Held:
        """Of the critic, from the examples that it was shown and its output on the real ones: what the game says."""
        if not self.rules.penalised:
            return 0.0, {}
        return self.penalty * games.gradient_penalty(lambda x: self.judge(x, condition), real, fake), {}

    def generator_penalty(self, n: int, condition: Tensor | None) -> Held:
        """Of the generator, in a step of `n` examples."""
        return 0.0, {}

    def needs_slope(self) -> bool:
        """Whether this step's `critic_penalty` differentiates the output by the real examples that it was shown."""
        return False

    def after_critic(self, total: Stats | None) -> None:
        """After the critic's step: `total` has its stats summed over micro-batches and ranks, once a step."""
        if self.rules.clipped:
            games.clip_weights(self.critic, self.weight_clip)

    def after_generator(self, total: Stats | None) -> None:
        """After the generator's step, alike."""

    def made(self, n: int, condition: Tensor | None) -> Tensor:
        """`n` samples of the generator as the critic compares them; dials act here."""
        return self.of_codes(torch.randn(n, self.latent, device=self.device), condition)

    def of_codes(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """The samples of codes `(B, latent)`, alike."""
        return self.generator(z, condition)

    def finish(self, x: Tensor) -> Tensor:
        """The centred examples of what the critic compares."""
        return x

    def rates(self) -> dict[nn.Module, float]:
        """The learning rate of each player."""
        return {self.generator: self.lr, self.critic: self.lr}

    # --- training ---------------------------------------------------------------------------------

    def updates(self, batch: Batch, progress: float) -> Iterator[Update]:
        self.begin(progress)
        real, condition, fake = self.seen(batch.x), batch.condition, None
        for turn in range(self.critics):
            kept = self.reuses_fakes and turn == self.critics - 1
            with torch.set_grad_enabled(kept):
                made = self.generate(len(real), condition)
            fake = made if kept else None
            self.after_critic((yield self.critic_update(real, made.detach(), condition)))
        self.after_generator((yield self.generator_update(real, condition, fake)))

    def critic_update(self, real: Tensor, fake: Tensor, condition: Tensor | None) -> Update:
        shown, shown_fake = self.show(torch.cat([real, fake])).split([len(real), len(fake)])
        shown = shown.requires_grad_(self.needs_slope())  # not before `show`: resampling has no second derivative
        on_real, on_fake = self.judge_both(shown, shown_fake, condition)
        penalty, stats = self.critic_penalty(shown, shown_fake, on_real, condition)
        loss = self.rules.discriminator(on_real, on_fake) + penalty
        return Update(self.critic, loss, {"real": on_real.mean(), "fake": on_fake.mean(), **stats})

    def generator_update(self, real: Tensor, condition: Tensor | None, fake: Tensor | None) -> Update:
        """Of new fakes, unless those of the critic's last step are given."""
        fake = self.generate(len(real), condition) if fake is None else fake
        score = self.judge(self.show(fake), condition)
        with torch.no_grad():  # the generator does not enter the critic's value of the data
            on_real = self.judge(self.show(real), condition) if self.rules.relative else score.detach()
        penalty, stats = self.generator_penalty(len(real), condition)
        loss = self.rules.generator(on_real, score) + penalty
        return Update(self.generator, loss, {"fooled": (score > 0).float().mean(), **stats})

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """Adam for both players."""
        return {
            player: torch.optim.Adam(player.parameters(), rate, (self.beta1, self.beta2), fused=True)
            for player, rate in self.rates().items()
        }

    def networks(self) -> list[nn.Module]:
        """Not the critic under a gradient penalty: compiled code has no double backward."""
        return [self.generator] if self.rules.penalised else [self.generator, self.critic]

    # --- samples ------------------------------------------------------------------------------------

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        ratio = self.rules.log_ratio
        if self.sampler == "generator" or ratio is None:
            return uncentre(self.finish(self.made(n, condition)), self.space)

        def propose() -> Tensor:
            return self.made(n, condition)

        def log_weight(x: Tensor) -> Tensor:
            return ratio(self.judge(x, condition))

        return uncentre(self.finish(independence_metropolis(propose, log_weight, self.chain_steps)), self.space)

    @property
    def filling(self) -> str:
        return (
            "Hamiltonian Monte Carlo over codes, those favoured whose samples are near what is known by a Gaussian of "
            f"deviation {KERNEL:g} (levels on [-1, 1], reals standardised), and what is known put back: approximate"
        )

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        noise = int(torch.randint(2**31, ()))  # of generators that draw some beside the code: the same throughout

        def decode(z: Tensor) -> Tensor:
            with seeded(noise, self.device):
                return self.finish(self.of_codes(z, condition))

        with frozen(self):
            z = latent_given(
                decode, lambda z: 0.5 * z.square().sum(1), torch.randn(len(x), self.latent, device=self.device),
                centre(x, self.space), known, self.fill_steps,
            )  # fmt: skip
            return uncentre(decode(z), self.space)

    @property
    def sample_evaluations(self) -> int:
        """Of generator and critic together, one after another."""
        return 1 if self.sampler == "generator" else 2 * (self.chain_steps + 1)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Near-duplicates among samples, and the critic's mean outputs and their gap."""
        real, condition = self.seen(batch.x), batch.condition
        fake = self.generate(len(real), condition)
        return games.signs_of_collapse(real, fake, *self.judge_both(real, fake, condition))


class Truncated(GANSystem):
    """Base of those whose samples can have their codes truncated (Brock et al., 2019)."""

    dials: ClassVar[dict[str, tuple[float, ...]]] = {"truncation": (0.25, 0.5, 1.0, 2.0, 5.0)}

    truncation: float = option(
        0.0, "largest absolute value of a sample's latent code; others are drawn again. 0 for no bound", least=0
    )

    def made(self, n: int, condition: Tensor | None) -> Tensor:
        return self.generator(truncated_normal((n, self.latent), self.truncation or math.inf, self.device), condition)
