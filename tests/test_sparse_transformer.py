"""Sparse transformer: what its heads attend to, what that costs, and distribution augmentation."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fivefold import catalog, fit
from fivefold.data.splits import Data, Split
from fivefold.errors import Unfit
from fivefold.nets import attention
from fivefold.nets.attention import Block, Local, Strided, Summary, attend
from fivefold.space import Batch, Space

IMAGE = Space("image", (1, 2, 2), levels=3)
OPTIONS = {"width": 16, "layers": 2, "heads": 2, "dropout": 0.0}
SEES = {  # whether i attends to j, as Child et al. (2019), sections 4.2 and 5.2, define it
    Local(3): lambda i, j: i - 3 <= j <= i,
    Strided(3): lambda i, j: j <= i and (i - j) % 3 == 0,
    Block(3): lambda i, j: j <= i and j // 3 == i // 3,
    Summary(4, 2): lambda i, j: j <= i and j % 4 in (2, 3),
    Summary(4, 4): lambda i, j: j <= i,
}


@pytest.mark.parametrize("length", [1, 2, 7, 12])
@pytest.mark.parametrize("pattern", SEES, ids=str)
def test_a_pattern_is_dense_attention_under_its_mask(pattern, length):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, length, 5, dtype=torch.float64)
    mask = torch.tensor([[SEES[pattern](i, j) for j in range(length)] for i in range(length)])
    dense = F.scaled_dot_product_attention(q, k, v, mask).nan_to_num()
    torch.testing.assert_close(pattern.attend(q, k, v), dense)
    for i in range(length):
        assert torch.arange(length)[pattern.seen(i)].tolist() == mask[i].nonzero().flatten().tolist()


@pytest.mark.parametrize("pattern", ["strided", "fixed"])
def test_work_grows_as_the_root_of_the_length_a_position(pattern, monkeypatch):
    """Pairs of positions that a block of two heads scores, at n = 256 and 4,096: 64-fold, not 256-fold."""
    pairs = []

    def counting(true):
        def counted(q, k, *args, **kwargs):
            pairs.append(q.shape[:-1].numel() * k.shape[-2])
            return true(q, k, *args, **kwargs)

        return counted

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", counting(F.scaled_dot_product_attention))
    monkeypatch.setattr(attention, "attention", counting(attention.attention))
    totals = []
    for length in (256, 4096):
        pairs.clear()
        system = catalog.build("sparse-transformer", Space("audio", (length,), levels=4, rate=1), pattern=pattern,
                               cells=1, **{**OPTIONS, "layers": 1})  # fmt: skip
        with system.evaluating():
            system.conditionals(torch.zeros(1, length, dtype=torch.long), None)
        totals.append(sum(pairs))
        assert totals[-1] <= 3 * length**1.5
    assert totals[1] / totals[0] == pytest.approx(64, rel=0.05)


@pytest.mark.parametrize(
    ("pattern", "space", "patterns"),
    [
        ("auto", Space("image", (3, 4, 5), levels=4), (Local(15), Strided(15))),
        ("auto", Space("text", (50,), levels=3, symbols="abc"), (Block(7), Summary(7, 2))),
        ("strided", Space("text", (50,), levels=3, symbols="abc"), (Local(7), Strided(7))),
        ("fixed", Space("image", (3, 4, 5), levels=4), (Block(15), Summary(15, 2))),
    ],
)
def test_half_of_the_heads_attend_nearby_and_half_far_away(pattern, space, patterns):
    """A stride is a row of an image or the root of the length; keys may be narrower than values."""
    system = catalog.build("sparse-transformer", space, pattern=pattern, key_share=0.5, **OPTIONS)
    assert all(block.patterns == patterns and block.widths == [8, 8, 16] for block in system.blocks)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_stated_share_of_examples_is_rearranged_by_each_in_turn(share):
    system, seen = catalog.build("sparse-transformer", IMAGE, augmented=share, **OPTIONS), []
    system.augmented_log_prob = lambda x, condition, kinds: seen.append(kinds) or x.flatten(1)[:, 0].float()
    torch.manual_seed(0)
    system.loss(Batch(torch.zeros(8000, 1, 2, 2, dtype=torch.long)))
    counts = seen[0].bincount(minlength=8) / 8000
    assert torch.allclose(counts[1:], torch.full((7,), share / 8), atol=5 * (share / 8 / 8000) ** 0.5)


@pytest.mark.parametrize(("augmentation", "count"), [("none", 1), ("rotation", 4), ("reflection+colour", 12),
                                                      ("rotation+transposition", 8), ("jigsaw", 4)])  # fmt: skip
def test_arrangements_are_distinct_permutations_from_the_identity(augmentation, count):
    space = Space("image", (3, 4, 4), levels=4)
    system = catalog.build("sparse-transformer", space, augmentation=augmentation, **OPTIONS)
    rows = system.arrangements
    assert len(rows) == count == len(rows.unique(dim=0))
    assert torch.equal(rows[0], torch.arange(48))
    assert torch.equal(rows.sort(1).values, torch.arange(48).expand(count, -1))


def test_every_arrangement_has_a_normalised_density_of_its_own():
    torch.manual_seed(0)
    system = catalog.build("sparse-transformer", IMAGE, **OPTIONS).eval()
    torch.nn.init.normal_(system.token.weight[1:])
    x = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 1, 2, 2)
    with torch.no_grad():
        values = torch.stack([system.augmented_log_prob(x, None, torch.full((81,), kind)) for kind in range(8)])
        assert torch.allclose(values.exp().sum(1), torch.ones(8), atol=1e-4)
        assert torch.allclose(values[0], system._log_prob(x, None), atol=1e-5)
        untold = torch.stack([system._log_prob(x.flatten(1)[:, row].view_as(x), None) for row in system.arrangements])
        system.token.weight.zero_()
        same = torch.stack([system.augmented_log_prob(x, None, torch.full((81,), kind)) for kind in range(8)])
    assert ((values - untold)[1:].abs().amax(1) > 1e-3).all()  # the token changes what is predicted
    assert torch.allclose(same, untold, atol=1e-5)  # and nothing else does but the arrangement


def test_the_token_keeps_augmented_examples_apart():
    """One image, turned in half of training: without the token its log-density could not pass ln(1/2 + 1/16)."""
    x = torch.tensor([[2, 1], [0, 0]]).expand(300, 1, 2, 2)
    splits = [Split(100, part.clone()) for part in x.split(100)]
    system = fit("sparse-transformer", Data("toy", IMAGE, *splits, fingerprint=""), budget="150steps", seed=0, lr=5e-3,
                 ema=0.9, augmented=0.5, **OPTIONS)  # fmt: skip
    assert system.score_encoded(splits[0].batch(slice(None))).log_prob.mean() > -0.2
    turned = system.augmented_log_prob(x[:8], None, torch.arange(8)).detach()
    assert turned.mean() > -0.5  # and the turned ones were learnt, each under its own token
    assert (system.sample_encoded(50, seed=0) == x[:50]).all(3).all(2).float().mean() > 0.8


@pytest.mark.parametrize(
    ("name", "side", "options", "why"),
    [
        ("transformer", 256, {}, r"Transformer .* 65,536 positions: .* 384 GiB .* 24\. Take .*sparse-transformer"),
        ("biggan", 512, {"attention": 512}, r"BigGAN .* 262,144 positions: .* 196 GiB .* 24\. Take .*--attention"),
    ],
)
def test_scores_beyond_the_limit_are_refused_with_their_memory(name, side, options, why):
    with pytest.raises(Unfit, match=why):
        catalog.build(name, Space("image", (1, side, side), levels=4), **options)


def held(system, sizes):
    """How many numbers of these sizes the last update of a step keeps for its gradients."""
    kept = {}

    def keep(x):
        if x.shape[-2:] in sizes:
            kept[x.data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        for _ in system.updates(Batch(torch.randint(4, (1, 1, 16, 16))), 0.5):
            last = [x.numel() for x in kept.values()]
            kept.clear()
    return sum(last)


@pytest.mark.parametrize(
    ("name", "options"), [("transformer", {"width": 16, "layers": 3}), ("biggan", {"width": 4, "attention": 16})]
)
def test_the_scores_that_are_estimated_are_those_that_training_holds(name, options, monkeypatch):
    """Where no kernel spares them."""
    found = []
    monkeypatch.setattr(f"{catalog.find(name).module}.refuse_dense", lambda _, layers, instead: found.extend(layers))
    system = catalog.build(name, Space("image", (1, 16, 16), levels=4), **options)
    with sdpa_kernel(SDPBackend.MATH):
        assert held(system, [(layer.queries, layer.keys) for layer in found]) == sum(map(math.prod, found))


@pytest.mark.parametrize(
    ("name", "options"),
    [("transformer", {"width": 16}), ("ddpm", {"channels": 8, "attention": 16}), ("score-sde", {"attention": 16})],
)
def test_fused_attention_holds_no_scores(name, options):
    assert held(catalog.build(name, Space("image", (1, 16, 16), levels=4), **options), [(256, 256)]) == 0


def test_long_images_fit_where_dense_attention_does_not():
    space = Space("image", (1, 256, 256), levels=4)
    with torch.device("meta"):
        catalog.build("transformer", Space("image", (1, 128, 128), levels=4))  # at the limit
        system = catalog.build("sparse-transformer", space, **OPTIONS)
        assert system.conditionals(torch.zeros(1, 1, 256, 256, dtype=torch.long), None).shape == (1, 65_536, 4)


@pytest.mark.parametrize(
    ("space", "options", "why"),
    [
        (Space("image", (1, 2, 3), levels=3), {"augmentation": "rotation"}, "reflection"),
        (Space("text", (4,), levels=3, symbols="abc"), {"augmentation": "jigsaw"}, "reversal"),
        (IMAGE, {"augmentation": "bend"}, "rotation"),
        (IMAGE, {"pattern": "round"}, "strided"),
        (IMAGE, {"heads": 3, "width": 15}, "3 heads"),
    ],
)
def test_refusals_say_what_there_is(space, options, why):
    with pytest.raises(ValueError, match=why):
        catalog.build("sparse-transformer", space, **{**OPTIONS, **options})


def test_attention_on_a_processor_is_in_single_precision_under_autocast():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 16, 8).bfloat16()
    wanted = (q.float() @ k.float().mT / 8**0.5).softmax(-1) @ v.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(q, k, v)
        coarse = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert found.dtype is torch.bfloat16
    assert (found == wanted.bfloat16()).float().mean() > 0.99  # but for ties
    assert (coarse == wanted.bfloat16()).float().mean() < 0.9  # which torch's kernel of bf16 does not reach
