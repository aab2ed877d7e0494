"""Integer discrete flow."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fivefold.bijections.base import Chain, Inverse, Layer, sum_dims
from fivefold.bijections.coupling import Coupling, MaskedCoupling, checkerboard_mask, parity_mask
from fivefold.bijections.discrete import IntegerShift, Translation, Wrap
from fivefold.bijections.shape import Permutation, Squeeze
from fivefold.flow._discrete import DiscreteFlowSystem
from fivefold.nets.coders import zero
from fivefold.nets.dense import DenseConditioner
from fivefold.options import depth_option, option, width_option
from fivefold.system import Density
from fivefold.tools.laws import Draw, IntegerLogistics, Law

QUICK = 20.0  # laws' own parameters have some units to go, and Adam's steps are of the size of its rate
Shape = tuple[int, ...]


class Idf(DiscreteFlowSystem):
    """Integer discrete flow (survey 6.5; Hoogeboom et al., 2019).

    Couplings that add rounded translations map integers to integers, so that the density is that of the code, without
    a Jacobian and without dequantisation. Multi-scale on images: squeeze, couplings of a quarter of the channels, and
    half of them factored out, with a discretised logistic law given the other half; mixtures of them at the end.

    Sums are modulo the number of levels, so that all probability lies on the data's levels. Without `wrap` they are of
    all integers, as in the paper: what is reported is then exact as a code length, and a lower bound of how probable
    samples are, which are clamped to the levels.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # The sizes and rates of the authors' program; learning rates fall as a cosine in place of by epochs.
        "cifar10": {
            "layers": 8, "scales": 3, "hidden": 512, "depth": 12, "factored": 1, "wrap": False,
            "batch_size": 256, "lr": 1e-3, "warmup": 0.005,
        },
        "imagenet32": {
            "layers": 8, "scales": 3, "hidden": 512, "depth": 12, "factored": 1, "wrap": False,
            "batch_size": 256, "lr": 1e-3, "warmup": 0.1,
        },
        "imagenet64": {
            "layers": 8, "scales": 4, "hidden": 512, "depth": 12, "factored": 1, "wrap": False,
            "batch_size": 64, "lr": 1e-3, "warmup": 0.1,
        },
        "cifar10-idf++": {
            "layers": 8, "scales": 3, "hidden": 512, "depth": 12, "factored": 1, "wrap": False, "restore": True,
            "rezero": True, "normed": True, "batch_size": 256, "lr": 1e-3, "warmup": 0.005,
        },
    }  # fmt: skip
    published: ClassVar[dict[str, tuple[float, str] | tuple[float, str, str]]] = {
        "cifar10": (58_458_052, "the authors' program: its weights, counted from their shapes"),
        "imagenet32": (58_458_052, "the authors' program: its weights, counted from their shapes"),
        "imagenet64": (84_333_916, "the authors' program: its weights, counted from their shapes"),
    }

    layers: int = depth_option(2, "couplings at each resolution of an image (on tables: in all)", tune=(1, 16))
    scales: int = option(3, "the most resolutions; fewer where a side becomes odd", least=0)
    hidden: int = width_option(48, "features that the layers of a coupling network add together", tune=(16, 512))
    depth: int = depth_option(2, "of a coupling network", tune=(1, 8))
    mixtures: int = option(5, "logistics of each dimension at the end", least=1, tune=(1, 16))
    factored: int = option(5, "logistics of each dimension that is factored out; 1 in the paper", least=1, tune=(1, 8))
    wrap: bool = option(True, "whether sums are modulo the number of levels; if not, the flow is of all integers")
    restore: bool = option(False, "whether each coupling's permutation of channels is undone after it (IDF++)")
    rezero: bool = option(
        False, "whether translations start at 0 by a learned factor in place of a last layer of zeros (IDF++)"
    )
    normed: bool = option(False, "group normalisation and swish in coupling networks in place of ReLU (IDF++)")
    lr = 3e-3

    def build(self) -> None:
        super().build()
        if not self.wrap:
            self.density = Density.LOWER_BOUND
        self.translation = partial(Translation, rezero=self.rezero)
        self.net = partial(
            DenseConditioner, hidden=self.hidden, depth=self.depth, condition=self.embedding.width, normed=self.normed
        )
        self.coupling_net = partial(self.net, zeroed=not self.rezero)
        levels = torch.tensor(self.space.dim_levels, device="cpu")
        levels = (
            levels if self.space.columns else levels[0].view(*[1] * len(self.space.shape))
        )  # alike where they are pixels
        self.register_buffer("levels", levels.double(), persistent=False)
        self.register_buffer("lowest", -(levels // 2).double(), persistent=False)
        self.levels: Tensor
        self.lowest: Tensor
        self.stages = nn.ModuleList(self._stages())

    @property
    def density_note(self) -> str:
        return "" if self.wrap else "exact on all integers"

    # --- the flow -------------------------------------------------------------------------------

    def _stages(self) -> list[_Stage]:
        """From the full resolution on."""
        shape, made = self.space.shape, list[_Stage]()
        while True:
            squeezed = self.space.kind == "image" and len(made) < self.scales and not (shape[1] % 2 or shape[2] % 2)
            shape = (4 * shape[0], shape[1] // 2, shape[2] // 2) if squeezed else shape
            steps = [step for layer in range(self.layers) for step in self._step(layer, shape)]
            kept = shape[0] // 2 if squeezed and len(made) + 1 < self.scales else 0
            law = self._law(kept, (shape[0] - kept, *shape[1:]), self.factored if kept else self.mixtures)
            made.append(_Stage(Chain(*[Squeeze()] * squeezed, *self._wrap(), *steps), law, kept))
            if not kept:
                return made
            shape = (kept, *shape[1:])

    def _step(self, layer: int, shape: Shape) -> list[Layer]:
        """One coupling, with what surrounds it."""
        channels, spatial = shape[0], shape[1:]
        units = self.levels.flatten().float().expand(channels)
        if channels >= 4 and math.prod(spatial) > 1:  # a quarter of the channels, after a random permutation
            permutation = Permutation(torch.randperm(channels, device="cpu"))
            mask = torch.arange(channels, device="cpu") >= channels - channels // 4
            back = [Inverse(permutation)] if self.restore else []
            return [permutation, self._coupling(mask, units, spatial), *self._wrap(), *back]
        if math.prod(spatial) > 1:
            mask = checkerboard_mask(spatial[0], spatial[1], odd=layer % 2 == 1)
            net = self.coupling_net(channels, channels, spatial)
            return [MaskedCoupling(mask, IntegerShift(), self.translation(net, units, units)), *self._wrap()]
        patterns = (1 << max(1, (channels - 1).bit_length())) - 1
        mask = parity_mask(channels, patterns - layer // 2 % patterns)
        return [self._coupling(~mask if layer % 2 and channels > 1 else mask, units, spatial), *self._wrap()]

    def _coupling(self, mask: Tensor, units: Tensor, spatial: Shape) -> Coupling:
        changed = int(mask.sum())
        net = self.coupling_net(len(mask) - changed, changed, spatial)
        return Coupling(mask, IntegerShift(), self.translation(net, units[~mask], units[mask]))

    def _wrap(self) -> list[Layer]:
        return [Wrap(self.lowest, self.levels)] if self.wrap else []

    def _law(self, kept: int, shape: Shape, mixtures: int) -> _Logistics:
        net = self.net(kept, _size_of(mixtures) * shape[0], shape[1:]) if kept else None
        return _Logistics(shape, self.levels.float(), mixtures, net, self.embedding.width, self.wrap)

    @property
    def _each(self) -> list[_Stage]:
        return list(self.stages)  # type: ignore[arg-type]

    # --- the contract ---------------------------------------------------------------------------

    def _log_prob(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return torch.stack([sum_dims(law.log_prob(z)) for z, law in self._parts(x, condition)]).sum(0)

    def _parts(self, x: Tensor, condition: Tensor | None) -> list[tuple[Tensor, Law]]:
        """Whole numbers in float64 that leave at each resolution, with their law given those that go on."""
        h, context, parts = x.double() + self.lowest, self.embedding(condition), []
        for stage in self._each:
            h, z = stage(h, context)
            parts.append((z, stage.law(h, context)))
        return parts

    def code(self, x: Tensor, condition: Tensor | None) -> list[Tensor]:
        return [z for z, _ in reversed(self._parts(x, condition))]

    def generate(self, n: int, condition: Tensor | None, draw: Draw) -> Tensor:
        context = self.embedding(condition)
        shape = self._each[-1].law.shape[1:]
        h = torch.zeros(n, 0, *shape, dtype=torch.float64, device=self.device)
        for stage in reversed(self._each):
            h = stage.inverse(h, draw(stage.law(h, context)), context)
        x = h - self.lowest
        return x.float() if self.space.columns else x.long()

    def _sample(self, n: int, condition: Tensor | None) -> Tensor:
        return self._on_levels(self.generate(n, condition, lambda law: law.sample().double()))

    def _on_levels(self, x: Tensor) -> Tensor:
        return torch.minimum(x.clamp(min=0), (self.levels - 1).to(x.dtype))

    def _encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return torch.cat([z.flatten(1) for z in self.code(x, condition)], 1)

    def _decode(self, z: Tensor, condition: Tensor | None) -> Tensor:
        shapes = [stage.law.shape for stage in reversed(self._each)]
        parts = iter(z.round().double().split([math.prod(shape) for shape in shapes], 1))
        given = iter([next(parts).unflatten(1, shape) for shape in shapes])
        return self._on_levels(self.generate(len(z), condition, lambda _: next(given)))


class _Stage(nn.Module):
    """One resolution: couplings, and the law of the channels that leave given the first `kept`."""

    def __init__(self, steps: Chain, law: _Logistics, kept: int) -> None:
        super().__init__()
        self.steps, self.law, self.kept = steps, law, kept

    def forward(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        y, _ = self.steps(x, condition)
        return y[:, : self.kept], y[:, self.kept :]

    def inverse(self, kept: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        return self.steps.inverse(torch.cat([kept, z], 1), condition)[0]


def _size_of(mixtures: int) -> int:
    """Parameters of a mixture of logistics: of a single one a mean and a log-scale."""
    return 3 * mixtures if mixtures > 1 else 2


class _Logistics(nn.Module):
    """Logistic laws of `(B, *shape)`: parameters of each dimension, and a network's of maps `(B, kept, ...)` if any.

    Args:
        shape: of what leaves.
        levels: of each dimension; they are the unit of means and scales.
        mixtures: logistics of each.
        net: adds to means and log-scales, and to mixtures' logits; None where nothing is kept.
        condition: width of the condition, 0 for none.
        wrap: whether the laws are of the levels alone.
    """

    levels: Tensor
    start: Tensor

    def __init__(
        self, shape: Shape, levels: Tensor, mixtures: int, net: nn.Module | None, condition: int, wrap: bool
    ) -> None:
        super().__init__()
        self.shape, self.net, self.mixtures, self.wrap = shape, net, mixtures, wrap
        centres = (2 * torch.arange(mixtures) + 1 - mixtures) / (2 * mixtures)
        spread = torch.full((mixtures,), -1.0 - math.log(mixtures))
        self.size = _size_of(mixtures)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("start", torch.cat([0 * centres, centres, spread])[-self.size :], persistent=False)
        self.own = nn.Parameter(torch.zeros(self.size, *shape))
        by_condition = condition and net is None
        self.context = zero(nn.Linear(condition, self.size * shape[0], bias=False)) if by_condition else None

    def forward(self, kept: Tensor, condition: Tensor | None) -> IntegerLogistics:
        own = QUICK * self.own.expand(len(kept), *self.own.shape)
        if self.net is not None:
            own = own + self.net((kept / self.levels).to(own.dtype), condition).view_as(own)
        elif self.context is not None and condition is not None:
            own = own + self.context(condition).view(*own.shape[:3], *[1] * (len(self.shape) - 1))
        own = own.movedim(1, -1) + self.start
        means, log_scales = own[..., -2 * self.mixtures :].chunk(2, -1)
        weights = own[..., : self.mixtures] if self.mixtures > 1 else torch.zeros_like(means)
        levels, lowest = self.levels.unsqueeze(-1), -(self.levels // 2)
        bounds = (lowest.double(), (lowest + self.levels - 1).double()) if self.wrap else None
        return IntegerLogistics(weights, levels * means, levels.log() + log_scales, bounds)
