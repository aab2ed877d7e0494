"""Flow++: its order of couplings, what its networks see, its colours."""

import pytest
import torch

from fivefold.bijections.coupling import Coupling, MaskedCoupling, checkerboard_mask
from fivefold.bijections.monotone import MixtureCDF
from fivefold.bijections.shape import Checkerboard
from fivefold.nets.attentive import AttentiveNet, _GatedAttention
from tests.test_flows import SPACES, build


def couplings_of(system):
    return [part for part in system.flow.modules() if isinstance(part, Coupling | MaskedCoupling)]


def test_colours_of_a_checkerboard_become_channels():
    mask = checkerboard_mask(3, 4)
    x = torch.where(mask, 1.0, 2.0).expand(2, 5, 3, 4)
    y, _ = Checkerboard()(x)
    assert torch.equal(y, torch.cat([torch.ones(2, 5, 3, 2), 2 * torch.ones(2, 5, 3, 2)], 1))


def test_the_papers_order():
    """Four couplings by pixels, two by channels after the squeeze, three by pixels; all of mixtures."""
    parts = couplings_of(build("flowpp", SPACES["digits"], layers=4))
    shapes = [tuple(part.net.position.shape[1:]) for part in parts]
    assert shapes == [(8, 4)] * 4 + [(4, 4)] * 2 + [(4, 2)] * 3
    assert all(isinstance(part.transform, MixtureCDF) for part in parts)
    changed = [part.change.tolist() for part in parts]
    assert changed[:4] == [[1], [0]] * 2
    assert changed[4:6] == [[2, 3], [0, 1]]
    odd = couplings_of(build("flowpp", SPACES["odd"], layers=4))
    assert len(odd) == 4
    assert all(isinstance(part, MaskedCoupling) for part in odd)


def test_the_noise_of_images_comes_from_couplings_of_their_own():
    """Of mixtures, whose networks attend and see maps of the example; drawn without looking for a root."""
    system = build("flowpp", SPACES["digits"], dequantisation="variational", noise_layers=3, noise_blocks=2)
    law = system.cells.law
    parts = [part for part in law.flow.modules() if isinstance(part, Coupling)]
    assert [part.change.tolist() for part in parts] == [[1], [0], [1]]
    assert all(isinstance(part.transform, MixtureCDF) for part in parts)
    assert [sum(isinstance(p, _GatedAttention) for p in part.net.parts) for part in parts] == [2, 2, 2]
    assert law.flow.exactness.inverse == "exact"
    torch.manual_seed(0)
    given = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        y, log_q = law.sample(given)
        torch.testing.assert_close(law.log_prob(y, given), log_q, rtol=1e-4, atol=1e-3)
        assert (law.log_prob(y, given.roll(1, 0)) - log_q).abs().min() > 1e-2


def net_of(**options):
    torch.manual_seed(0)
    net = AttentiveNet(1, 2, (1, 20), hidden=8, heads=2, **options)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def reach(net, x):
    moved = x.clone()
    moved[..., -1] += 1
    return [(net(moved) - net(x))[..., place].abs().max().item() > 1e-6 for place in (0, -1)]


def test_networks_attend_to_places_that_no_convolution_reaches():
    net, x = net_of(blocks=1), torch.randn(1, 1, 1, 20)
    assert reach(net, x) == [True, True]
    assert sum(isinstance(part, _GatedAttention) for part in net.parts) == 1
    net.parts = torch.nn.ModuleList(part for part in net.parts if not isinstance(part, _GatedAttention))
    assert reach(net, x) == [False, True]


def test_attention_tells_places_apart_by_their_position():
    net, x = net_of(blocks=1), torch.randn(1, 1, 1, 20)
    before = net(x)
    net.position.data.zero_()
    assert (net(x) - before).abs().max() > 1e-3


def test_networks_see_a_condition_as_a_vector_or_as_maps():
    net, x = net_of(blocks=2, condition=3), torch.randn(4, 1, 1, 20)
    vector = torch.randn(4, 3)
    torch.testing.assert_close(net(x, vector), net(x, vector[:, :, None, None].expand(-1, -1, 1, 20)))
    maps = torch.randn(4, 3, 1, 20)
    assert (net(x, maps) - net(x, vector)).abs().max() > 1e-3


def test_networks_are_zero_at_first_and_refuse_heads_that_do_not_fit():
    assert AttentiveNet(1, 2, (2, 2))(torch.randn(3, 1, 2, 2)).abs().max() == 0
    with pytest.raises(ValueError, match="cannot be shared by 5 heads"):
        AttentiveNet(1, 2, (2, 2), heads=5)
