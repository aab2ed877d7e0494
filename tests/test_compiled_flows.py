"""Compiled flows compute what plain ones do, with one thread and with two."""

import copy

import pytest
import torch

from fivefold import catalog
from fivefold.bijections.autoregressive import masked_autoregressive_flow
from fivefold.bijections.base import Chain
from fivefold.bijections.coupling import alternate_channels, in_a_row
from fivefold.bijections.linear import LULinear
from fivefold.bijections.splines import Spline
from fivefold.bijections.transforms import Affine
from fivefold.nets.conditioner import Conditioner
from fivefold.space import Space


def couplings(transform):
    def net(*sizes):
        return Conditioner(*sizes, hidden=16, blocks=1)

    return Chain(LULinear(6), in_a_row(alternate_channels(layer, (6,), transform, net) for layer in range(5)))


FLOWS = {
    "affine coupling": lambda: couplings(Affine()),
    "spline coupling": lambda: couplings(Spline("rational-quadratic", 8, 3.0)),
    "autoregressive": lambda: masked_autoregressive_flow(6, 3, Affine(), 16),
}


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", FLOWS)
def test_compiled_and_plain_flows_agree(name, threads):
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.compiler.reset()
    try:
        plain = FLOWS[name]()
        for parameter in plain.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        compiled = copy.deepcopy(plain)
        compiled.compile()
        x = torch.randn(256, 6)  # at random, so away from knots
        found = []
        for flow in (plain, compiled):
            z, log_det = flow(x)
            (z.square().sum() / 2 - log_det.sum()).backward()
            with torch.no_grad():
                z, log_det = flow(x)
            found.append((z, log_det, *[parameter.grad for parameter in flow.parameters()]))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * one.abs().max().item())


# Those whose log-determinants take no gradient and whose way to noise takes no iteration.
WHOLE = [
    "anf", "bnaf", "cif", "emerging", "flowpp", "glow", "macow", "maf-flow", "mintnet", "monge-ampere", "naf", "nice",
    "ot-flow", "periodic-flow", "planar-flow", "potential-flow", "rad", "realnvp", "sos-flow", "spline-flow",
    "surjective-flow", "sylvester-flow", "umnn",
]  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "glow" else pytest.mark.slow) for name in WHOLE]
)
def test_a_flow_that_has_started_is_one_graph(name):
    """With a break at every layer a compiled flow is slower than a plain one."""
    torch.manual_seed(0)
    torch.compiler.reset()
    system = catalog.build(name, Space("image", (1, 4, 4), levels=17))
    x = torch.rand(16, 1, 4, 4)
    system.flow(x)
    whole = torch.compile(system.flow, backend="eager", fullgraph=True)
    torch.manual_seed(1)
    found = whole(x)
    torch.manual_seed(1)
    torch.testing.assert_close(found, system.flow(x))
