"""The divergence of a vector field and its Jacobian's norm, exactly or by Hutchinson's estimator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def with_divergence(f: Callable[[Tensor], Tensor], x: Tensor, probe: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """f(x) `(B, ...)` and the trace of df/dx of each row, `(B,)`; see `with_jacobian`."""
    return with_jacobian(f, x, probe)[:2]


def with_jacobian(
    f: Callable[[Tensor], Tensor], x: Tensor, probe: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """f(x) `(B, ...)`, and of each row's J = df/dx the trace and the squared Frobenius norm, both `(B,)`.

    Without a probe both are exact and take one backward pass a dimension; with one, `e`, they are e J e and |e J|^2,
    unbiased where E[e e^T] = I (Hutchinson 1990), in a single pass. All can be differentiated where gradients are
    enabled.

    Args:
        f: maps every row on its own, `(B, ...)` to the same shape.
        x: `(B, ...)`.
        probe: of the shape of `x`, see `rademacher`; None for what is exact.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if differentiable and x.requires_grad else x.detach().requires_grad_()
        y = f(x)
        if probe is not None:
            (product,) = torch.autograd.grad(y, x, probe, create_graph=differentiable)
            return _kept(y, differentiable), _sum(product * probe), _sum(product.square())
        trace = norm = y.new_zeros(len(y))
        for i, column in enumerate(y.flatten(1).unbind(1)):
            (row,) = torch.autograd.grad(column.sum(), x, create_graph=differentiable, retain_graph=True)
            trace, norm = trace + row.flatten(1)[:, i], norm + _sum(row.square())
    return _kept(y, differentiable), trace, norm


def rademacher(x: Tensor) -> Tensor:
    """A probe like `x`, every entry -1 or 1 with equal chances: of all probes with the least variance."""
    return torch.randint(2, x.shape, device=x.device).to(x.dtype) * 2 - 1


def _sum(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


def _kept(y: Tensor, graph: bool) -> Tensor:
    return y if graph else y.detach()
