"""PixelRNN: its layers against their definition pixel by pixel, what they see, how many steps they take."""

import pytest
import torch
from torch.nn import functional as F

from fivefold import catalog
from fivefold.autoregressive import pixelrnn
from fivefold.autoregressive.pixelrnn import KINDS, skew, unskew
from fivefold.space import Space

SMALL = {"channels": 8, "layers": 1, "hidden": 8, "embedding": 3, "dropout": 0.0}


def test_skewing_shifts_row_i_by_i_and_back():
    x = torch.randn(4, 2, 3, 5, 6)  # W, directions, B, H, n
    skewed = skew(x)
    assert skewed.shape == (8, 2, 3, 5, 6)
    for row in range(5):
        assert torch.equal(skewed[row : row + 4, :, :, row], x[:, :, :, row])
        assert (skewed[:row, :, :, row] == pixelrnn.CLOSED).all()
        assert (skewed[row + 4 :, :, :, row] == pixelrnn.CLOSED).all()
    assert torch.equal(unskew(skewed, 4), x)


def states(enter, weight, sees):
    """States `(n, H, W)` from what enters the gates `(4 n, H, W)`, pixel by pixel; `sees`: where those before lie."""
    n, height, width = len(enter) // 4, *enter.shape[1:]
    h, c = torch.zeros(2, n, height + 1, width + 2)  # a border of zeros above and to both sides
    for row in range(height):
        for column in range(width):
            seen = torch.cat([h[:, row + 1 + down, column + 1 + right] for down, right in sees])
            o, f, i, g = (enter[:, row, column] + seen @ weight).split(n)
            down, right = (-1, 0) if len(sees) == 3 else sees[-1]
            memory = f.sigmoid() * c[:, row + 1 + down, column + 1 + right] + i.sigmoid() * g.tanh()
            c[:, row + 1, column + 1], h[:, row + 1, column + 1] = memory, o.sigmoid() * memory.tanh()
    return h[:, 1:, 1:-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_its_definition(kind):
    """Row: from three states above; diagonal: from above and the left, and mirrored, that a row lower."""
    torch.manual_seed(0)
    system = catalog.build("pixelrnn", Space("image", (2, 4, 5), levels=3), kind=kind, **SMALL)
    layer, x = system.stack[0], torch.randn(1, 16, 4, 5)
    with torch.no_grad():
        enter = layer.enter(x)[0]
        if kind == "row":
            h = states(enter, layer.state[0], [(-1, -1), (-1, 0), (-1, 1)])
        else:
            left, right = enter.split(32)
            h = states(left, layer.state[0], [(-1, 0), (0, -1)])
            mirrored = states(right.flip(2), layer.state[1], [(-1, 0), (0, -1)]).flip(2)
            h = h + F.pad(mirrored[:, :-1], (0, 0, 1, 0))
        torch.testing.assert_close(layer(x, None), x + layer.out(h[None]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_first_mask_a_then_mask_b_and_nothing_is_forgotten_at_first(kind):
    """Of a pixel a first-layer feature sees earlier colours, 3 inputs each; a gate also the features of its own."""
    system = catalog.build("pixelrnn", Space("image", (2, 4, 5), levels=3), kind=kind, **SMALL)
    enter, colour = system.stack[0].enter, torch.arange(16) // 8
    gates = (torch.arange(8) // 4).repeat(len(enter.bias) // 8)
    assert torch.equal(system.left.mask[:, :, 0, -1], (colour[:, None] > torch.arange(6) // 3).float())
    assert torch.equal(enter.mask[:, :, 0, -1], (gates[:, None] >= colour).float())
    assert (enter.bias.view(-1, 4, 8)[:, 1] == 1).all()


@pytest.mark.parametrize(("kind", "steps"), [("row", 6), ("diagonal", 6 + 9 - 1)])
def test_the_loop_is_over_rows_or_diagonals_only(kind, steps, monkeypatch):
    calls, true = [], pixelrnn.cell
    monkeypatch.setattr(pixelrnn, "cell", lambda *given: calls.append(given) or true(*given))
    system = catalog.build("pixelrnn", Space("image", (1, 6, 9), levels=3), kind=kind, **{**SMALL, "layers": 3})
    system.conditionals(torch.zeros(2, 1, 6, 9, dtype=torch.long), None)
    assert len(calls) == 3 * steps


def seen_by(kind, row, column):
    """Which pixels of 7x7 reach the parameters of one, by autograd."""
    torch.manual_seed(0)
    system = catalog.build(
        "pixelrnn", Space("image", (1, 7, 7)), kind=kind, first_kernel=3, **{**SMALL, "channels": 40, "hidden": 100}
    )
    x = torch.zeros(1, 1, 7, 7, requires_grad=True)
    system.conditionals(x, None)[0, row * 7 + column].abs().sum().backward()
    return x.grad[0, 0] != 0


def test_diagonals_see_all_before_and_rows_a_triangle():
    before = (torch.arange(49) < 5 * 7 + 3).view(7, 7)
    diagonals = seen_by("diagonal", 5, 3)
    assert (before & ~diagonals).nonzero().tolist() == [[4, 6]]  # masked at its own place, beyond the first kernel
    assert (diagonals <= before).all()
    rows = seen_by("row", 5, 3)
    assert (rows <= before).all()
    assert not rows[4].all()  # the row above no wider than the kernels: 3 + 2 and one more to either side
    assert rows[0].all()
    assert (rows[1:5].int().diff(dim=0) <= 0).all()  # further up, more of it


def test_one_direction_alone_is_blind_to_the_right(monkeypatch):
    """What the second direction is for: without it nothing to the right of the first kernel is seen."""
    monkeypatch.setitem(KINDS, "diagonal", KINDS["diagonal"]._replace(both=False))
    assert not seen_by("diagonal", 5, 3)[:, 5:].any()
