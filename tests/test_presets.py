"""Paper presets: they build on the paper's data, with the number of parameters that was published, and run."""

from __future__ import annotations

import pytest
import torch

from docs.presets import ALL, PAGE, affordable, build, count, row, space_of
from fivefold import Batch, catalog
from fivefold.nets.norm import NormBound


@pytest.mark.parametrize(("name", "preset"), ALL)
def test_presets_build_with_the_published_number_of_parameters(name, preset):
    _, parameters = count(name, preset)
    published = catalog.class_of(name).published.get(preset)
    if published is not None:
        counted, source, *_ = published
        assert len(source) > 10
        assert abs(parameters / counted - 1) < 0.02, f"{parameters:,} against {counted:,.0f} ({source})"
    assert row(name, preset) in PAGE.read_text(encoding="utf-8").splitlines(), "run `python -m docs.presets`"


def test_the_page_has_no_other_rows():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(rows) == len(ALL)


def test_what_is_published_is_of_a_preset():
    for name, entry in catalog.entries().items():
        assert catalog.class_of(name).published.keys() <= set(entry.presets), name


@pytest.mark.slow
@pytest.mark.parametrize(("name", "preset"), ALL)
def test_a_preset_takes_its_first_and_last_step_and_draws_a_sample(name, preset, monkeypatch):
    """At batch 1 where that is affordable (see `docs.presets`); a larger one is built by the test above."""
    if not affordable(name, preset):
        pytest.skip("too large to run here: built on the meta device")
    monkeypatch.setattr(NormBound, "EVALUATION", (5, 1e-4))  # and not to convergence, which takes minutes
    torch.manual_seed(0)
    system, space = build(name, preset, "cpu", short=True).train(), space_of(name, preset)
    condition = torch.zeros(1, 1) if space.condition else None
    batch = Batch(torch.randint(space.levels, (1, *space.shape)), condition)
    for progress in (0.0, 1.0):
        optimizers = system.optimizers()
        for group in (group for optimizer in optimizers.values() for group in optimizer.param_groups):
            group["lr"] *= system.learning_rate(progress)
        for update in system.updates(batch, progress):
            assert update.loss.isfinite()
            update.loss.backward(inputs=list(update.player.parameters()))
            gradients = [p.grad for p in update.player.parameters() if p.grad is not None]
            assert all(gradient.isfinite().all() for gradient in gradients)
            assert any(gradient.any() for gradient in gradients)
            optimizers[update.player].step()
            optimizers[update.player].zero_grad()
    x = system.sample_encoded(1, condition, seed=0)
    assert x.shape == (1, *space.shape)
    assert ((x >= 0) & (x < space.levels)).all()
