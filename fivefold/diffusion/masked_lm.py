"""Masked language models: each number given all others, drawn one after another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.errors import Unfit
from fivefold.nets.attention import Attending, TransformerBlock, refuse_dense
from fivefold.nets.condition import ConditionEmbedding
from fivefold.nets.embedding import DimEmbedding, Position
from fivefold.nets.heads import LIKELIHOOD, LIKELIHOOD_HELP, Head
from fivefold.options import depth_option, dropout_option, option, slot, width_option
from fivefold.system import Batch, Density, System
from fivefold.tools.schedule import warm_cosine

MOST_ROWS = 2**16  # positions that the network sees at once for an implicit energy


class MaskedLM(System):
    """Masked language model (survey 2.3.1; Devlin et al., 2019; Wang and Cho, 2019; Goyal et al., 2021).

    A transformer that sees all positions of a text, the pixels of an image or the columns of a table, some of them
    hidden, and learns what these were. Samples start with everything hidden and are drawn number by number, each given
    what there is, then anew given all others (Gibbs sampling).

    Such conditionals need not be those of any joint law, so that there is no density. With the Metropolis sampler each
    new number is a proposal that is accepted by an energy which the network implies, and the chains follow exp(-E) / Z:
    E is minus the sum over positions of ln p(x_i | the others), or of the network's outputs before they are normalised.
    """

    densities: ClassVar[dict[str, Density]] = {"text": Density.NONE, "image": Density.NONE, "table": Density.NONE}
    sampling: ClassVar[str] = "mcmc"
    least_batch: ClassVar[int] = 32  # how many numbers are hidden is spread over it
    dials: ClassVar[dict[str, tuple[float, ...]]] = {"sweeps": (0, 1, 2, 4)}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"precision": "auto", "ema": 0.98, "clip": 100.0},
        "bert": {"hidden_share": 0.15},
    }

    width: int = width_option(64, "of the features", tune=(8, 256))
    layers: int = depth_option(2, "blocks", tune=(1, 16))
    heads: int = option(4, "of the attention", least=1, tune=(1, 2, 4, 8))
    dropout: float = dropout_option(0.0, "share of each branch's outputs that is dropped in training")
    likelihood: Any = option(slot("auto"), LIKELIHOOD_HELP, needs=LIKELIHOOD)
    hidden_share: float = option(
        0.0, "share of the numbers that is hidden in training; 0 for any number of them, another for each example",
        least=0, most=1,
    )  # fmt: skip
    sampler: str = option(
        "gibbs", "what follows the first draw of each number: Gibbs sampling, or metropolis, by an implicit energy",
        choices=("gibbs", "metropolis"),
    )  # fmt: skip
    implicit: str = option(
        "normalised", "the energy: of the conditionals, or of the outputs before they are normalised",
        choices=("normalised", "raw"),
    )  # fmt: skip
    sweeps: int = option(1, "draws of each number, on average, after the first", least=0)
    fill_steps = 2
    lr = 4e-3
    weight_decay: float = option(
        0.01, "of matrices; biases and gains are not decayed", least=0, tune=(1e-4, 1.0), log=True, section="optimizers"
    )

    def build(self) -> None:
        super().build()
        dense = [Attending(self.space.dims, self.space.dims, self.heads)] * self.layers
        refuse_dense("MaskedLM", dense, "smaller images (--size) or shorter examples")
        self.head = Head(self.space, self.fill("likelihood", self.space))
        self.embedding = DimEmbedding(self.space, self.width, scale=0.3)
        self.mask = nn.Parameter(0.3 * torch.randn(self.width))
        self.position = Position(self.space, self.width)
        self.condition = ConditionEmbedding(self.space.condition, self.width)
        self.drop = nn.Dropout(self.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(self.width, self.heads, self.dropout) for _ in range(self.layers))
        self.norm = nn.LayerNorm(self.width)
        self.last = nn.Linear(self.width, self.head.width)
        if self.sampler == "metropolis":
            self._refuse_unfit()
            self.density = Density.UNNORMALISED

    def _refuse_unfit(self) -> None:
        if not self.space.discrete:
            raise Unfit(f"an implicit energy needs discrete numbers, not {self.space.describe()}")
        if self.implicit == "raw" and not self.head.has_logits:
            raise Unfit(f"the raw energy needs an output for every value, which {self.likelihood} does not give here")

    @property
    def density_note(self) -> str:
        return f"{self.implicit} implicit energy" if self.density is Density.UNNORMALISED else ""

    # --- the network: x flat (B, D) -----------------------------------------------------------------

    def outlook(self, x: Tensor, hidden: Tensor, condition: Tensor | None) -> Tensor:
        """What every position makes of the numbers that are not `hidden` `(B, D)`, `(B, D, width)`."""
        h = torch.where(hidden[..., None], self.mask, self.embedding(x)) + self.position()
        context = self.condition(condition)
        h = self.drop(h if context is None else h + context[:, None])
        for block in self.blocks:
            h = block(h)
        return self.norm(h)

    def conditionals(self, x: Tensor, hidden: Tensor, condition: Tensor | None) -> Tensor:
        """Parameters for the head from the numbers that are not hidden."""
        return self.last(self.outlook(x, hidden, condition))

    def networks(self) -> list[nn.Module]:
        return list(self.blocks)

    def loss(self, batch: Batch) -> Tensor:
        """Nats of an example, each number at what a hidden one costs on average; the others are seen."""
        x = batch.x.flatten(1)
        dims = x.shape[1]
        # Of a batch the numbers of hidden ones are spread evenly over all that are possible.
        spread = (torch.randperm(len(x), device=x.device)[:, None] + torch.rand(len(x), 1, device=x.device)) / len(x)
        most = (spread * dims).long().clamp(max=dims - 1) + 1
        count = most if self.hidden_share == 0 else torch.full_like(most, max(1, round(self.hidden_share * dims)))
        hidden = torch.rand(x.shape, device=x.device).argsort(1) < count
        nats = -self.head.log_prob(self.conditionals(x, hidden, batch.condition), x)
        return dims * ((nats * hidden).sum(1) / count.squeeze(1)).mean()

    def optimizers(self) -> dict[nn.Module, torch.optim.Optimizer]:
        """AdamW, its rate warmed up linearly and then down along a cosine."""
        decayed = [p for p in self.parameters() if p.dim() > 1]
        others = [p for p in self.parameters() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return {self: torch.optim.AdamW(groups, self.lr, betas=(0.9, 0.98), fused=True)}

    def learning_rate(self, progress: float) -> float:
        return warm_cosine(progress, warmup=0.03)

    # --- chains -------------------------------------------------------------------------------------

    def redraw(self, x: Tensor, dim: Tensor, hidden: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """A new value of one number of each example given those not hidden, and ln p of it and of the present one.

        Args:
            x: `(B, D)`.
            dim: which, `(B, 1)`.
            hidden: `(B, D)`, that number among them.
            condition: of each, or None.
        """
        h = self.outlook(x, hidden, condition)
        params = self.last(h.gather(1, dim[..., None].expand(-1, -1, h.shape[2])))
        y = x.scatter(1, dim, self.head.sample_at(dim, params).to(x.dtype))
        return y, self.head.log_prob_at(dim, params, y), self.head.log_prob_at(dim, params, x)

    def gibbs(self, x: Tensor, dim: Tensor, condition: Tensor | None) -> Tensor:
        """One number of each example anew given all others (Wang and Cho, 2019)."""
        return self.redraw(x, dim, torch.zeros_like(x, dtype=torch.bool).scatter(1, dim, True), condition)[0]

    def energy(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The implicit energy `(B,)` (Goyal et al., 2021, section 3.1): each number hidden by itself, D evaluations."""
        dims, score = x.shape[1], self.head.log_prob if self.implicit == "normalised" else self.head.logit
        alone, found = torch.eye(dims, dtype=torch.bool, device=x.device), []
        for rows in torch.arange(len(x), device=x.device).split(max(1, MOST_ROWS // dims**2)):
            given = None if condition is None else condition[rows].repeat_interleave(dims, 0)
            many, hidden = x[rows].repeat_interleave(dims, 0), alone.repeat(len(rows), 1)
            h = self.outlook(many, hidden, given)[hidden].view(len(rows), dims, -1)
            found.append(score(self.last(h), x[rows]).sum(1))
        return -torch.cat(found)

    def metropolis(self, steps: int, choose: Callable[[], Tensor], x: Tensor, condition: Tensor | None) -> Tensor:
        """What Gibbs sampling would draw, accepted by the implicit energy (Goyal et al., 2021, Algorithm 1)."""
        value = self.energy(x, condition)
        for _ in range(steps):
            dim = choose()
            hidden = torch.zeros_like(x, dtype=torch.bool).scatter(1, dim, True)
            y, there, back = self.redraw(x, dim, hidden, condition)
            found = self.energy(y, condition)
            taken = torch.rand_like(found).log() < value - found + back - there
            x, value = torch.where(taken[:, None], y, x), torch.where(taken, found, value)
        return x

    def draw(self, x: Tensor, known: Tensor, condition: Tensor | None, sweeps: int) -> Tensor:
        """What is not `known` `(B, D)`, first in a random order given what there is by then, then given all else."""
        free = (~known).sum(1)
        order, hidden = (torch.rand(x.shape, device=x.device) + known.float()).argsort(1), ~known
        for turn in range(int(free.max())):
            dim = order[:, turn, None]
            y = self.redraw(x, dim, hidden, condition)[0]
            x = torch.where((turn < free)[:, None], y, x)  # of some rows there is more to draw
            hidden = hidden.scatter(1, dim, False)
        weight, steps = (~known).float() + 1e-30, sweeps * int(free.max())
        choose = partial(torch.multinomial, weight, 1)
        if self.sampler == "metropolis":
            found = self.metropolis(steps, choose, x, condition)
        else:
            found = x
            for _ in range(steps):
                found = self.gibbs(found, choose(), condition)
        return torch.where(known, x, found)

    @property
    def sample_evaluations(self) -> int:
        dims = self.space.dims
        return dims * (1 + self.sweeps * (1 + dims if self.sampler == "metropolis" else 1))

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        blank = torch.zeros(n, self.space.dims, dtype=self.head.dtype, device=self.device)
        return self.draw(blank, torch.zeros_like(blank, dtype=torch.bool), condition, self.sweeps).view(
            n, *self.space.shape
        )

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """-E, up to the unknown -ln Z, in nats `(B,)`."""
        return -self.energy(x.flatten(1), condition)

    @property
    def filling(self) -> str:
        if self.sampler == "metropolis":
            return "its chains with what is known held: exact for the implicit energy in the limit of many steps"
        return "its conditionals, one number after another given what is known: as samples, of no law that is known"

    def _fill(self, x: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        start = torch.where(known, x, 0).flatten(1)
        return self.draw(start, known.flatten(1), condition, self.fill_steps).view_as(x)

    def monitor(self, batch: Batch) -> dict[str, float]:
        """Nats of a number given all others, and given half of them."""
        x, found = batch.x.flatten(1), {}
        for name, share in (("nats_of_one", 0.0), ("nats_of_half", 0.5)):
            hidden = torch.rand(x.shape, device=x.device).argsort(1) < max(1, round(share * x.shape[1]))
            nats = -self.head.log_prob(self.conditionals(x, hidden, batch.condition), x)
            found[name] = nats[hidden].mean().item()
        return found
