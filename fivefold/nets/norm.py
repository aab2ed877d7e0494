"""Normalisation of features, by every batch or the first, and of weights: spectral norm, bounded norms."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm as spectral_norm

from fivefold.tools.spectral import Convolution, LinearMap, Matrix, induced_norm, power_iteration


class BatchNorm(nn.Module):
    """Batch normalisation of `(B, C, ...)` per channel, its statistics over the examples of all ranks.

    Outside a process group, or in one of a single rank, it is torch's own. torch's SyncBatchNorm
    needs CUDA; this works over any backend.

    Args:
        channels: C.
        momentum: weight of the newest batch in the running statistics, which evaluation uses.
        eps: added to the variance.
        affine: whether a learnt scale and shift follow.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        weight, bias = torch.ones(channels), torch.zeros(channels)
        if affine:
            self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        else:
            self.register_buffer("weight", weight, persistent=False)
            self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and distributed.is_initialized() and distributed.get_world_size() > 1:
            return self._normalise_over_ranks(x.float()).to(x.dtype)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )

    def _normalise_over_ranks(self, x: Tensor) -> Tensor:
        axes, view = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
        local = x.new_tensor([x.numel() / x.shape[1]])
        total = _SumOverRanks.apply(torch.cat([x.sum(axes), local]))
        mean, count = total[:-1] / total[-1], total[-1].detach()
        centred = x - mean.view(view)
        # A second reduction, of squared deviations: E x^2 - (E x)^2 would cancel in float32.
        variance = _SumOverRanks.apply((centred**2).sum(axes)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centred * scale.view(view) + self.bias.view(view)


class FirstBatch(nn.Module):
    """What the first batch in training sets; from then on examples do not touch one another."""

    started: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self._known_started = False

    def set_by(self, mean: Tensor, variance: Tensor) -> None:
        """Take over what was found, per channel."""
        raise NotImplementedError

    def look_at(self, x: Tensor) -> None:
        """Set by `x` `(B, C, ...)` of all ranks where it is the first batch in training."""
        if not self._waits():
            return
        x, axes = x.detach().float(), [0, *range(2, x.dim())]
        moments = torch.stack([x.mean(axes), x.square().mean(axes)])
        if distributed.is_initialized():  # all ranks start alike
            distributed.all_reduce(moments)
            moments /= distributed.get_world_size()
        with torch.no_grad():
            self.set_by(moments[0], (moments[1] - moments[0] ** 2).clamp(min=1e-6))
        self.started.fill_(True)
        self._known_started = True

    def _waits(self) -> bool:
        """Whether the first batch is to come. Once it has, the buffer, on which no compiler can branch, isn't asked."""
        if not self.training:
            return False
        self._known_started = self._known_started or bool(self.started)
        return not self._known_started

    def skip(self) -> None:
        """Take no batch as the first: things stay as they were built."""
        self._known_started = True

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self._known_started = False


class ActNorm(FirstBatch):
    """exp(log_scale) (x + bias) for every channel of `(B, C, ...)` (Kingma and Dhariwal, 2018, 3.1).

    The first batch in training sets both, so that it comes out with mean 0 and variance 1; from then on they are
    parameters like others.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale, self.bias = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        self.look_at(x)
        return (x + _per_channel(self.bias, x)) * _per_channel(self.log_scale, x).exp()

    def inverse(self, y: Tensor) -> Tensor:
        return y * _per_channel(-self.log_scale, y).exp() - _per_channel(self.bias, y)

    def after(self, layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
        """`self(layer(x))`; once started by way of the layer's weights, which spares two passes over its outputs."""
        if self._waits():
            return self(layer(x))
        assert layer.bias is not None
        scale = self.log_scale.exp()
        weight, bias = layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1)), (layer.bias + self.bias) * scale
        return layer._conv_forward(x, weight, bias) if isinstance(layer, nn.Conv2d) else F.linear(x, weight, bias)

    def set_by(self, mean: Tensor, variance: Tensor) -> None:
        self.bias.copy_(-mean)
        self.log_scale.copy_(-0.5 * variance.log())


class Standardised(FirstBatch):
    """Numbers `(B, D)`, each with mean 0 and all together with variance 1 in the first batch in training.

    One scale for all, of `MOST` at the highest: a number that hardly varies is not blown up by the noise of its
    deviation, and neither are all where the first batch is nearly constant.

    Args:
        which: those of D, `(D,)` of bool, that the scale is of; what others become means nothing.
    """

    which: Tensor
    mean: Tensor
    scale: Tensor
    MOST = 10.0

    def __init__(self, which: Tensor) -> None:
        super().__init__()
        self.register_buffer("which", which, persistent=False)
        self.register_buffer("mean", torch.zeros(len(which)))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.look_at(x)
        return self.of(slice(None), x)

    def of(self, dims: slice | int, x: Tensor) -> Tensor:
        """Of some of them alone."""
        return (x - self.mean[dims]) * self.scale

    def set_by(self, mean: Tensor, variance: Tensor) -> None:
        self.mean.copy_(mean)
        self.scale.copy_(variance[self.which].mean().rsqrt().clamp(max=self.MOST))


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 2))


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks; its gradient, that of the sum of all ranks' losses, is again a sum over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        distributed.all_reduce(gradient)
        return gradient


@contextlib.contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """`net` in eval mode, its parametrised (spectrally normalised) weights computed once and as constants.

    For samplers, which evaluate the same weights many times and differentiate by the input alone. Power
    iterations pause, so that there is one per training step (survey 4.1.2).
    """
    was_training = net.training
    net.eval()
    try:
        with parametrize.cached():
            with torch.no_grad():
                _fill_cache(net)
            yield
    finally:
        net.train(was_training)


@contextlib.contextmanager
def held(net: nn.Module) -> Iterator[None]:
    """`net` in its mode, its parametrised weights computed once, with their graph where gradients are enabled.

    For what is solved for and then differentiated: every evaluation has the same weights, in training too.
    """
    with parametrize.cached():
        _fill_cache(net)
        yield


def _fill_cache(net: nn.Module) -> None:
    for module in filter(parametrize.is_parametrized, net.modules()):
        for name in dict(module.parametrizations.named_children()):  # type: ignore[union-attr]
            getattr(module, name)


class NormBound(nn.Module):
    """weight / max(1, norm / limit), the norm of the linear map that the weight stands for (Chen et al., 2019, App. D).

    Unlike spectral norm it leaves a smaller norm as it is, and takes a convolution as the map of images that it is.
    In training few steps of power iteration at a time go on from the last; in evaluation they go on to convergence.

    Args:
        linear: the map.
        limit: of its norm.
        steps: of power iteration in training, at most.
        orders: p and q, for the norm that p- and q-norms induce (`spectral.induced_norm`); None for 2 and 2.
    """

    right: Tensor
    EVALUATION = (1000, 1e-4)  # steps at most, tolerance
    TOLERANCE = 1e-3  # in training
    SLACK = 1e-3  # what the norm may still exceed its estimate by, relative
    STARTS = 8  # of the search for a norm of other orders, which can end at a lesser maximum

    def __init__(
        self, linear: LinearMap, limit: float, steps: int = 5, orders: tuple[Ordered, Ordered] | None = None
    ) -> None:
        super().__init__()
        self.linear, self.limit, self.steps, self.orders = linear, limit, steps, orders
        self.register_buffer("right", torch.randn(1 if orders is None else self.STARTS, *linear.shape[1:]))

    def forward(self, weight: Tensor) -> Tensor:
        steps, tolerance = (self.steps, self.TOLERANCE) if self.training else self.EVALUATION
        if self.orders is None:
            left, right, excess = power_iteration(self.linear, weight.detach(), self.right, steps, tolerance)
            norm = (excess + self.SLACK) * (left * self.linear.apply(weight, right)).sum()
        else:
            p, q = (order() if isinstance(order, LearnedOrder) else order for order in self.orders)
            norm, right = induced_norm(self.linear, weight, (p, q), self.right, steps, tolerance)
            norm = (1 + self.SLACK) * norm
        if self.training:
            self.right.copy_(right)
        return weight / (norm / self.limit).clamp(min=1)


@dataclass
class LearnedOrder:
    """The order p of a norm, of one entry of a parameter that several layers share: 1 / p in (0.05, 0.95), 2 at 0.

    Not a module: the parameter belongs to whoever made it, and is saved once.

    Args:
        raw: the parameter `(n,)`.
        index: of the entry.
    """

    raw: nn.Parameter
    index: int

    def __call__(self) -> Tensor:
        return 1 / (0.05 + 0.9 * torch.sigmoid(self.raw[self.index]))


Ordered = float | LearnedOrder


def bounded(
    layer: nn.Linear | nn.Conv2d,
    limit: float,
    spatial: tuple[int, ...] = (),
    orders: tuple[Ordered, Ordered] | None = None,
) -> nn.Module:
    """`layer` with a norm of at most `limit` as a map of vectors, or of images of one size, by `NormBound`.

    Args:
        layer: linear, or a convolution with zero padding.
        limit: of the norm.
        spatial: (H, W) of a convolution's input.
        orders: of the norms of inputs and outputs; None for 2 and 2.
    """
    linear: LinearMap = Matrix((1, layer.weight.shape[1]))
    if isinstance(layer, nn.Conv2d):
        # Every position alike, which the spectral norm does not depend on the number of: others do, from p to q < p.
        pointwise = layer.kernel_size == (1, 1) and layer.padding == (0, 0) and orders is None
        shape = (1, layer.in_channels, *((1, 1) if pointwise else spatial))
        linear = Convolution(shape, layer.stride, tuple(int(p) for p in layer.padding))
    # `unsafe` only leaves out a trial run, which cannot run where tensors have no values (the meta device).
    return parametrize.register_parametrization(layer, "weight", NormBound(linear, limit, orders=orders), unsafe=True)
