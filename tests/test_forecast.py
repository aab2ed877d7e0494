"""What is said of a training before it is begun agrees with the training."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import fivefold
from fivefold import catalog
from fivefold.cli.app import app
from fivefold.errors import OptionError, Unfit
from fivefold.machine import bytes_in
from fivefold.options import slot
from fivefold.training.forecast import Forecast, Need, Way
from fivefold.training.options import Settings, arguments
from fivefold.training.recompute import layers_of
from fivefold.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> fivefold.Data:
    return fivefold.load_data("digits")


def forecast(name: str, data: fivefold.Data, **options: object) -> Forecast:
    split = arguments(catalog.class_of(name), None, options)
    return Forecast(catalog.class_of(name), data, split["system"], Settings(**split["fit"]), CPU)


# --- the forecast -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "abstract"), [("gated-pixelcnn", True), ("vae", True), ("dcgan", True), ("ffjord", False), ("made", False)]
)
def test_parameters_and_states_are_exact(digits, name, abstract):
    """Of a trained system; whether steps are made without numbers or with small real ones."""
    options = {"hidden": 16} if name == "ffjord" else {}
    said = forecast(name, digits, **options)
    need = said.need(Way(8))
    assert said.abstract == abstract
    trainer = Trainer(catalog.build(name, digits.space, **options), digits, None, lambda event: None, batch_size=8)
    trainer.system.train()
    trainer._iterate()
    assert said.numbers == sum(p.numel() for p in trainer.system.parameters())
    assert need.model == sum(
        v.numel() * v.element_size() for v in (*trainer.system.parameters(), *trainer.system.buffers())
    )
    states = [value for o in trainer.optimizers.values() for state in o.state.values() for value in state.values()]
    assert need.states == sum(value.numel() * value.element_size() for value in states)


def test_a_step_without_numbers_counts_as_one_with(digits):
    """The same operations, and about the bytes alive at the most: real operations take a little for themselves."""
    said, real = forecast("gated-pixelcnn", digits), forecast("gated-pixelcnn", digits)
    real.abstract = False
    for way in (Way(12), Way(12, recompute=True)):
        ours, theirs = said.step(way), real.step(way)
        assert said.abstract
        assert ours.states == theirs.states
        assert ours.operations == theirs.operations
        assert ours.most == pytest.approx(theirs.most, rel=0.1)


def test_what_spares_memory_does(digits):
    said = forecast("gated-pixelcnn", digits, layers=4)
    usual, parts, again = (said.need(way) for way in (Way(64), Way(64, accumulate=4), Way(64, recompute=True)))
    assert parts.step < 0.5 * usual.step
    assert again.step < 0.6 * usual.step
    assert said.step(Way(64, recompute=True)).operations > 1.2 * said.step(Way(64)).operations
    cut = said.need(Way(64, devices=2, shard=True))
    assert cut.states == -(-usual.states // 2)
    assert cut.gathered == 2 * said.parameters
    assert cut.step < 0.6 * usual.step  # half the batch


def test_the_first_way_that_fits_costs_least(digits):
    said = forecast("gated-pixelcnn", digits)
    ways = list(said.ways(Way(64, devices=2)))
    assert ways[0] == Way(64, devices=2)
    assert ways[1] == Way(64, devices=2, accumulate=2)
    assert Way(64, devices=2, accumulate=32, recompute=True, shard=True) in ways
    assert ways[-1].batch_size == 2
    game = forecast("dcgan", digits)
    assert not any(way.shard or way.recompute for way in game.ways(Way(64, devices=2)))


def test_need_is_the_sum_of_its_parts():
    assert Need(1, 2, 3, 4, 5).total == 15


@pytest.mark.parametrize(("text", "size"), [("80GB", 80 * 10**9), ("1.5GiB", 3 * 2**29), ("500 MB", 5 * 10**8)])
def test_sizes_in_words(text, size):
    assert bytes_in(text) == size


@pytest.mark.parametrize("text", ["80", "0GB", "much"])
def test_other_sizes_are_named(text):
    with pytest.raises(OptionError, match="takes a size as 80GB"):
        bytes_in(text)


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        ("1GB", "fits; "),
        ("1GB", "it fits with: --batch-size 64\n"),
        ("3MB", "does not fit; "),
        ("3MB", "it fits with: --batch-size 64 --accumulate 2\n"),
    ],
)
def test_the_command_says_what_fits_and_how(command, memory, said):
    assert said in command(f"gated-pixelcnn --channels 8 --layers 1 --memory {memory}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("vae --memory 1MB", "nothing that the plan knows makes it fit"),
        ("vae --devices 3", "a batch of 64 does not divide into 3 devices x 1 parts"),
        ("dcgan --devices 2 --shard", "DCGAN cannot be trained with --shard: 2 players"),
    ],
)
def test_what_cannot_be_planned_says_so(command, words, said):
    assert said in command(words)


@pytest.fixture(scope="module")
def command() -> Callable[[str], str]:
    """What `plan` says, once for the same words."""

    @functools.cache
    def run(words: str) -> str:
        name, *rest = words.split()
        result = CliRunner().invoke(app, ["plan", name, "--data", "digits", *rest])
        return f"{result.output}{result.exception}"

    return run


# --- layers that are computed again -------------------------------------------------------------


@pytest.mark.parametrize("name", ["gated-pixelcnn", "ddpm", "igebm", "glow", "vq-vae", "biggan"])
def test_layers_computed_again_train_as_kept_ones(digits, name):
    """Dropout, spectral norms, batch statistics and what the first batch sets included."""
    trained = []
    for recompute in (False, True):
        torch.manual_seed(0)
        system = catalog.build(name, digits.space, **SMALL.get(name, {}))
        settings = {"budget": "3steps", "batch_size": 16, "recompute": recompute}
        trainer = Trainer(system, digits, None, lambda event: None, **settings)
        system.train()
        for _ in range(3):
            trainer._iterate()
        trained.append(system.state_dict())
    for key, value in trained[0].items():
        assert torch.allclose(value.double(), trained[1][key].double(), rtol=0, atol=1e-5, equal_nan=True), key


CHAINS = slot("contrastive-divergence", chain_steps=2)
SMALL: dict[str, dict[str, object]] = {
    "gated-pixelcnn": {"channels": 8, "layers": 2}, "ddpm": {"channels": 8},
    "igebm": {"width": 4, "objective": CHAINS}, "glow": {"layers": 1, "hidden": 8}, "biggan": {"width": 8},
}  # fmt: skip


def test_layers_are_elements_of_lists_and_none_is_large(digits):
    system = catalog.build("transformer", digits.space)
    layers = layers_of(system)
    assert layers == list(system.blocks)
    assert all(isinstance(layer, nn.Module) and any(True for _ in layer.children()) for layer in layers)


def test_systems_without_such_layers_say_so(digits):
    system = catalog.build("i-resnet", digits.space)
    with pytest.raises(Unfit, match="IResNet has no layers that could be computed again"):
        Trainer(system, digits, None, lambda event: None, recompute=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graphs": True}, "--graphs replays what a GPU does"),
        ({"compile": True, "recompute": True}, "--compile and --graphs cannot follow"),
    ],
)
def test_what_does_not_go_together_is_named(digits, options, message):
    system = catalog.build("vae", digits.space)
    with pytest.raises(OptionError, match=message):
        Trainer(system, digits, None, lambda event: None, **options)


# --- on a GPU -----------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="counts what a GPU waits for")
@pytest.mark.parametrize("name", ["vae", "ddpm", "dcgan", "glow"])
def test_a_step_does_not_wait_for_the_gpu(digits, name):
    system = catalog.build(name, digits.space).to("cuda")
    trainer = Trainer(system, digits, None, lambda event: None, batch_size=64)
    system.train()
    for _ in range(3):  # the first batch sets parameters, and step 0 is checked
        trainer._iterate()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(3):
            trainer._iterate()
    waits = {event.key for event in profile.key_averages()} & {"cudaStreamSynchronize", "cudaEventSynchronize"}
    assert not waits
