"""Redraws the survey's Table 3 from the code, with measured costs: `python docs/table3.py` writes `flows.md`.

Each direction is timed as a user has it, without gradients, after parameters were moved away from the identity.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.common import machine
from fivefold import catalog
from fivefold.bijections.autoregressive import MaskedAutoregressive
from fivefold.bijections.base import Inverse, Layer
from fivefold.bijections.block import BlockAutoregressive
from fivefold.bijections.convolution import ConvExp, PeriodicConv, emerging
from fivefold.bijections.coupling import alternate_channels
from fivefold.bijections.determinant import Planar, Sylvester
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.masked_convolution import macow_unit, mint_pair
from fivefold.bijections.monotone import DeepSigmoid, Integral, MixtureCDF, SumOfSquares
from fivefold.bijections.ode import ContinuousFlow
from fivefold.bijections.residual import Residual, SeriesOptions, implicit_block
from fivefold.bijections.splines import Spline
from fivefold.bijections.transforms import Additive, Affine, Transform
from fivefold.nets.conditioner import Conditioner
from fivefold.nets.lipschitz import ContractiveNet, LipschitzAttention
from fivefold.nets.velocity import Velocity

PAGE = Path(__file__).parent / "flows.md"
VECTOR, IMAGE = (64,), (4, 8, 8)
BATCH, HIDDEN, REPEATS = 256, 128, 5


class Row(NamedTuple):
    """What the table says of a bijection, in LaTeX, and how it is made for the clock."""

    name: str
    function: str
    inverse: str
    log_det: str
    make: Callable[[], Layer]
    shape: tuple[int, ...] = VECTOR


def coupling(transform: Transform) -> Layer:
    return alternate_channels(0, VECTOR, transform, lambda *sizes: Conditioner(*sizes, hidden=HIDDEN, blocks=1))


def autoregressive(transform: Transform) -> MaskedAutoregressive:
    return MaskedAutoregressive(VECTOR[0], transform, HIDDEN)


def contraction() -> ContractiveNet:
    return ContractiveNet(VECTOR, HIDDEN, 0, 0.9, "lipswish")


def residual(stop: float | None) -> Layer:
    return Residual(contraction(), SeriesOptions(score_stop=stop))


NEWTON, SUM = "Newton's within a bracket", r"$\sum_i \ln h'(x_i)$"
ROWS = [
    Row("planar", r"$x + u \tanh(w^\top x + b)$", NEWTON, r"$\ln(1 + \tanh'(\cdot)\, u^\top w)$", lambda: Planar(64)),
    Row("Sylvester", r"$x + Q R \tanh(\tilde{R} Q^\top x + b)$", "Newton's, last coordinate of $Q$ to first",
        r"$\sum_m \ln(1 + \tanh'_m R_{mm} \tilde{R}_{mm})$", lambda: Sylvester(64, 16)),
    Row("coupling, additive", r"$x_2 + t(x_1)$", r"$y_2 - t(y_1)$", "0", lambda: coupling(Additive())),
    Row("coupling, affine", r"$x_2 e^{s(x_1)} + t(x_1)$", r"$(y_2 - t) e^{-s}$", r"$\sum_i s_i$",
        lambda: coupling(Affine())),
    Row("coupling, mixture CDF (Flow++)", r"$e^s \sigma^{-1}(F(x_2)) + t$", NEWTON, SUM,
        lambda: coupling(MixtureCDF(8))),
    *[Row(f"coupling, {kind} spline", r"$\mathrm{Spline}(x_2; \theta(x_1))$",
          NEWTON if kind == "cubic" else r"$\mathrm{Spline}^{-1}$", "slopes of the pieces",
          lambda kind=kind: coupling(Spline(kind)))  # type: ignore[misc]
      for kind in ("linear", "quadratic", "cubic", "rational-quadratic")],
    Row("MAF, affine", r"$x_i e^{s(x_{<i})} + t(x_{<i})$", r"$h^{-1}$, block by block", r"$\sum_i s_i$",
        lambda: autoregressive(Affine())),
    Row("IAF, affine", r"$h(x_i; \theta(y_{<i}))$, block by block", r"$h^{-1}(y_i; \theta(y_{<i}))$",
        r"$\sum_i s_i$", lambda: Inverse(autoregressive(Affine()))),
    Row("NAF", r"monotone network of $x_i$", NEWTON + ", block by block", SUM, lambda: autoregressive(DeepSigmoid())),
    Row("UMNN", r"$\int_0^{x_i} g(u; \theta(x_{<i})) du + t$", NEWTON + ", block by block", r"$\sum_i \ln g(x_i)$",
        lambda: autoregressive(Integral())),
    Row("SOS", r"$\int_0^{x_i} 1 + \sum_k p_k(u)^2 du$", NEWTON + ", block by block", SUM,
        lambda: autoregressive(SumOfSquares())),
    Row("B-NAF", r"block triangular tanh network", "Newton's, sweeps over all dimensions",
        "products of the blocks on the diagonal", lambda: BlockAutoregressive(64, 8)),
    Row("actnorm", r"$e^s (x + b)$", r"$e^{-s} y - b$", r"$H W \sum_c s_c$", lambda: ActNorm(4), IMAGE),
    Row("1×1 convolution, LU", r"$P L U x_{ij}$", "two substitutions", r"$H W \sum_c \ln \lvert U_{cc} \rvert$",
        lambda: LULinear(4), IMAGE),
    Row("emerging convolution", r"$k \star (g \star x)$, masked", "substitution along a wavefront",
        r"$H W \sum_c \ln \lvert k_{cc} g_{cc} \rvert$", lambda: emerging(4), IMAGE),
    Row("periodic convolution", r"$\mathcal{F}^{-1} W_f \mathcal{F} x$", r"$W_f^{-1}$ at each frequency",
        r"$\sum_f \ln \lvert \det W_f \rvert$", lambda: PeriodicConv(4), IMAGE),
    Row("MaCow", r"$h(x_p; \theta(\text{rows before}))$, four orders", "row by row, column by column", SUM,
        lambda: macow_unit(4, Affine()), IMAGE),
    Row("MintNet", r"$t x + W_3 h(W_2 h(W_1 x))$, masked", "Newton's with the diagonal",
        r"$\sum_i \ln \partial y_i / \partial x_i$", lambda: mint_pair(IMAGE, 8), IMAGE),
    Row("convolution exponential", r"$e^M x$", r"$e^{-M} y$", r"$H W \, \mathrm{tr}\, m_{centre}$", lambda: ConvExp(4),
        IMAGE),
    Row("i-ResNet", "$x + g(x)$, $g$ a contraction", "fixed point of $y - g(x)$, accelerated",
        r"$\sum_{k \leq n} \frac{(-1)^{k+1}}{k} \mathrm{tr} J^k$", lambda: residual(None)),
    Row("residual flow", "$x + g(x)$, $g$ a contraction", "fixed point of $y - g(x)$, accelerated",
        r"the same series, ended by roulette", lambda: residual(0.5)),
    Row("Lipschitz self-attention", r"$x + g(x)$, $g$ an L2 attention", "fixed point of $y - g(x)$, accelerated",
        r"the same series, ended by roulette",
        lambda: Residual(LipschitzAttention(IMAGE, 2, 0, 0.9, "lipswish"), SeriesOptions()), IMAGE),
    Row("implicit", "root $z$ of $z + g_z(z) = x + g_x(x)$", "root $x$ of the same",
        r"$\ln \det(I + J_{g_x}) - \ln \det(I + J_{g_z})$",
        lambda: implicit_block(contraction(), contraction(), SeriesOptions())),
    Row("ODE block", r"$x + \int_0^1 f(t, x_t) dt$", "the equation backwards",
        r"$\int_0^1 \mathrm{tr}\, \partial f / \partial x_t \, dt$",
        lambda: ContinuousFlow(Velocity(VECTOR, HIDDEN, 1, 0, "concatsquash"), 1e-5, "hutchinson")),
]  # fmt: skip


def main() -> None:
    torch.manual_seed(0)
    lines = [
        "# Flows", "",
        "The survey's Table 3, redrawn from the code by `python docs/table3.py`: what each bijection does, how either "
        "direction is found, and what it costs.", "",
        f"Milliseconds for a batch of {BATCH} vectors of {VECTOR[0]} numbers, or images of "
        f"{IMAGE[0]}×{IMAGE[1]}×{IMAGE[2]}, with its log-determinant; networks have {HIDDEN} hidden units. "
        f"On {machine()}.", "",
        "| bijection | forward | inverse | ln det | on | forward, ms | inverse, ms |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in ROWS:
        lines.append(line(row))
        print(lines[-1], flush=True)
    PAGE.write_text("\n".join([*lines, "", *gallery()]))


def line(row: Row) -> str:
    """A row of the table, measured."""
    layer = row.make().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        x = torch.randn(BATCH, *row.shape)
        y = layer(x)[0]
        forward, inverse = (milliseconds(lambda f=f, at=at: f(at)) for f, at in ((layer, x), (layer.inverse, y)))  # type: ignore[misc]
    exact = layer.exactness
    cells = [
        row.name,
        row.function + (" *(iterative)*" if exact.forward == "iterative" else ""),
        row.inverse + (" *(iterative)*" if exact.inverse == "iterative" else ""),
        row.log_det + ("" if exact.log_det == "exact" else f" *({exact.log_det})*"),
        "×".join(map(str, row.shape)),
        f"{forward:.2g}",
        f"{inverse:.2g}",
    ]
    return f"| {' | '.join(cells)} |"


def milliseconds(call: Callable[[], object]) -> float:
    """The least of several goes, after one that does not count; one go alone where it takes more than a second."""
    times = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(1 + REPEATS):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
            if times[0] > 1:
                return 1e3 * times[0]
    return 1e3 * min(times[1:])


def gallery() -> list[str]:
    """The pictures of `planes.py`, those that were drawn."""
    names = [name for name in catalog.entries() if (PAGE.parent / "pictures" / f"plane-{name}.png").exists()]
    cells = [f"`{name}` | ![The plane of {name}](pictures/plane-{name}.png)" for name in names]
    rows = [f"| {cells[i]} | {cells[i + 1] if i + 1 < len(cells) else '|'} |" for i in range(0, len(cells), 2)]
    return [
        "## In the plane", "",
        "Each system after 60 s of training on the two moons, on one core: its density, and where it takes circles "
        "that hold 10, 40, 70 and 95 % of the noise and rays between them, or samples where a noise has no one place "
        "(`python docs/planes.py`).", "",
        "| | | | |", "|---|---|---|---|", *rows, "",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
