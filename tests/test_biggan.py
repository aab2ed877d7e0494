"""BigGAN: what the class and the code reach, the norms of all layers, attention, orthogonality, truncation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fivefold import fit, load_data
from fivefold.gan.biggan import BigGAN, ConditionalNorm, SelfAttention
from fivefold.space import Batch, Space, label_space
from fivefold.tools.games import hinge_discriminator, orthogonal_penalty

PICTURES = Space("image", (3, 16, 16), 256).conditioned_on(label_space(tuple("abc")))
X, LABELS = torch.randint(256, (6, 3, 16, 16)), torch.tensor([[0.0], [1], [2], [0], [1], [2]])


def system(**options) -> BigGAN:
    torch.manual_seed(0)
    return BigGAN(PICTURES, **{"latent": 9, "width": 4, "shared": 5, **options})


def test_class_and_code_set_the_norms_and_one_embedding_serves_all_blocks():
    generator = system().generator.eval()
    assert generator.parts == [3, 3, 3]
    assert [block.norm1.scale.weight.shape[1] for block in generator.blocks] == [8, 8]
    z = torch.randn(6, 9)
    plain = generator(z, LABELS)
    assert not torch.allclose(plain, generator(z, (LABELS + 1) % 3))
    for block in generator.blocks:  # nothing else tells the class
        for norm in (block.norm1, block.norm2):
            for layer in (norm.scale, norm.shift):
                layer.parametrizations.weight.original.data[:, 3:] = 0
    torch.testing.assert_close(generator(z, LABELS), generator(z, (LABELS + 1) % 3))
    for part in range(3):
        other = z.clone()
        other[:, 3 * part : 3 * part + 3] += 1
        assert not torch.allclose(generator(other, LABELS), generator(z, LABELS))


def test_a_code_is_the_mean_and_deviation_of_each_channel():
    torch.manual_seed(0)
    norm, x, code = ConditionalNorm(3, 5), 4 + 2 * torch.randn(20, 3, 9, 9), torch.randn(1, 5)
    y = norm(x, code.expand(20, -1))
    norm.eval()
    torch.testing.assert_close(y.mean((0, 2, 3)), norm.shift(code)[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(y.std((0, 2, 3)), (1 + norm.scale(code)[0]).abs(), atol=1e-3, rtol=0)


def test_the_critic_projects_the_class():
    """The difference between classes is the inner product of their embeddings' difference with the features."""
    critic, x, features = system().critic.eval(), torch.randn(6, 3, 16, 16), []
    critic.out.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    one, two = critic(x, LABELS), critic(x, (LABELS + 1) % 3)
    embedded = critic.embed((LABELS + 1) % 3) - critic.embed(LABELS)
    torch.testing.assert_close(two - one, (embedded * features[0]).sum(1), atol=1e-5, rtol=1e-4)
    assert (two - one).abs().max() > 1e-4


def test_every_layer_has_norm_one():
    s = system()
    first = s.generator.blocks[0].conv1.weight
    assert orthogonal_penalty(first).item() == pytest.approx(0, abs=1e-6)  # as all start
    for parameter in s.parameters():
        parameter.data.mul_(3)
    for _ in range(60):  # power iterations
        s.generator(torch.randn(6, 9), LABELS), s.critic(torch.randn(6, 3, 16, 16), LABELS)
    s.eval()
    free = set(s.generator.embed.modules())
    layers = [m for m in s.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m not in free]
    assert len(layers) > 20
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


def test_attention_is_over_all_positions_and_starts_at_nothing():
    torch.manual_seed(0)
    layer, x = SelfAttention(16).eval(), torch.randn(2, 16, 4, 6)
    torch.testing.assert_close(layer(x), x)
    layer.weight.data.fill_(1.0)
    pooled = [nn.functional.max_pool2d(m(x), 2).flatten(2) for m in (layer.key, layer.value)]
    weights = (layer.query(x).flatten(2).transpose(1, 2) @ pooled[0]).softmax(2)
    expected = layer.out((pooled[1] @ weights.transpose(1, 2)).view(2, 8, 4, 6))
    torch.testing.assert_close(layer(x) - x, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("attention", "level"), [(4, 0), (8, 1), (16, 2)])
def test_both_players_attend_at_the_same_resolution(attention, level):
    s, sides = system(attention=attention), []
    for player in (s.generator, s.critic):
        player.attention.register_forward_pre_hook(lambda _, x: sides.append(x[0].shape[-1]))
    s.critic(s.generator(torch.randn(2, 9), LABELS[:2]), LABELS[:2])
    assert sides == [4 * 2**level, min(8, 4 * 2**level)]  # the critic never has features of the full resolution


def test_orthogonal_penalty_is_of_products_of_different_filters():
    weight = torch.randn(4, 3, 2, 2)
    rows = weight.flatten(1)
    expected = sum((rows[i] @ rows[j]) ** 2 for i in range(4) for j in range(4) if i != j)
    torch.testing.assert_close(orthogonal_penalty(weight), expected)
    orthogonal = nn.init.orthogonal_(torch.empty(4, 12)) * torch.tensor([[1.0], [2], [3], [4]])
    assert orthogonal_penalty(orthogonal).item() == pytest.approx(0, abs=1e-6)
    s = system()
    with torch.no_grad():
        s.generator.blocks[0].conv1.parametrizations.weight.original[1:] += 1

    def loss(weight):
        s.orthogonal = weight
        torch.manual_seed(1)
        s.eval()
        return list(s.updates(Batch(X, LABELS), 0.0))[-1].loss.item()

    assert loss(1.0) - loss(0.0) == pytest.approx(s.generator_penalty(6, None)[1]["overlap"].item(), rel=1e-3)
    assert loss(1.0) - loss(0.0) > 1


def test_large_batches_are_split(monkeypatch):
    seen, true = [], BigGAN.updates
    record = lambda s, batch, progress: seen.append(len(batch.x)) or true(s, batch, progress)  # noqa: E731
    monkeypatch.setattr(BigGAN, "updates", record)
    data = load_data(torch.randint(256, (24, 16, 16, 3), dtype=torch.uint8).numpy())
    fit("biggan", data, budget="2steps", batch_size=8, accumulate=4, evaluations=1, width=4, latent=9)
    assert seen == [2] * 8


def test_the_critics_loss_is_the_hinge():
    s, scores = system(), []
    s.critic.register_forward_hook(lambda module, inputs, y: scores.append(y))
    update = next(s.updates(Batch(X, LABELS), 0.0))
    torch.testing.assert_close(update.loss, hinge_discriminator(*scores))
