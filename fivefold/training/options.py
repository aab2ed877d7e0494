"""All that may be said of a training: a system's options and the trainer's, and presets of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from fivefold.options import Configured, Option, names_in, option, options_of, preset_of, reach_into_slots, unknown

if TYPE_CHECKING:
    from fivefold.system import System

Precision = Literal["auto", "32", "bf16", "fp16"]
Tracking = Literal["none", "trackio", "mlflow"]
Measure = Literal["auto", "density", "distance"]


class Settings(Configured):
    """How to train, whatever the system."""

    budget: str = option(
        "60s", "how long: 60s, 10m, 5000steps or 20epochs; seconds count training time only", section="fit"
    )
    seed: int = option(0, "of the initial weights, the order of examples and all noise", least=0, section="fit")
    batch_size: int | None = option(
        None, "examples an iteration, over all ranks and micro-batches; none: by data and budget, 16 to 256, else 64",
        least=1, tune=(16, 256), log=True, section="fit",
    )  # fmt: skip
    accumulate: int = option(1, "micro-batches an iteration is split into, to save memory", least=1, section="fit")
    recompute: bool = option(
        False, "keep only what enters a layer and compute it again in the backward pass: less memory, more time",
        section="fit",
    )  # fmt: skip
    shard: bool = option(
        False, "cut parameters, gradients and optimiser states into a part for each process (under torchrun)",
        section="fit",
    )  # fmt: skip
    balance: bool = option(
        False, "draw every class of the condition equally often in training, however rare it is", section="fit"
    )
    precision: Precision = option(
        "32", "32, bf16, fp16 with loss scaling, or auto: bf16 on devices made for it, else 32", section="fit"
    )
    clip: float = option(0.0, "largest norm of a player's gradient; 0 does not clip", least=0, section="fit")
    skip: float = option(
        0.0, "a step whose gradient's norm, before clipping, exceeds this is left out; 0 leaves out none", least=0,
        section="fit",
    )  # fmt: skip
    ema: float = option(
        0.0, "decay of the exponential moving average of the weights, which is then what is kept; 0 for none", least=0,
        below=1, section="fit",
    )  # fmt: skip
    evaluations: int = option(
        10, "at how many equal parts of the budget to validate, and thrice early in the first; the best weights are "
        "kept", least=1, section="fit",
    )  # fmt: skip
    by: Measure = option(
        "auto", "what the best weights are chosen by on the validation split: the density, the distance of samples, or "
        "auto: the density where there is one", section="fit",
    )  # fmt: skip
    sized_for: str = option(
        "", "the budget that sizes are chosen for, where training goes on later; none: this one", section="fit"
    )
    retries: int = option(
        3, "how often to go back and halve the learning rate after a non-finite loss or gradient", least=0,
        section="fit",
    )  # fmt: skip
    checkpoint_seconds: float = option(30.0, "how often to save what is needed to resume", above=0, section="fit")
    compile: bool = option(False, "compile the networks (seconds to minutes before the first step)", section="fit")
    graphs: bool = option(
        False, "compile the networks and replay what they do on a GPU as CUDA graphs: for many small operations",
        section="fit",
    )  # fmt: skip
    tensorboard: bool = option(False, "write curves for TensorBoard into the run folder", section="fit")
    track: Tracking = option("none", "where what the log gets is sent too", section="fit")

    def __init__(self, **options: Any) -> None:
        self.configure(options)


def options(cls: type[System]) -> dict[str, Option]:
    """All options of a system's training by name: the model's, its optimisers' and those of `fit`."""
    own, fit = options_of(cls), options_of(Settings)
    both = own.keys() & fit.keys()
    if both:
        raise TypeError(f"{cls.__name__}: {', '.join(sorted(both))} are options of training too")
    return own | fit


def arguments(cls: type[System], preset: str | None, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The checked arguments of the system ("system") and of the trainer ("fit"): presets under `given`.

    Raises OptionError for an unknown preset, option or a value that an option does not take.
    """
    known = options(cls)
    chosen = preset_of(cls, preset) | given
    split: dict[str, dict[str, Any]] = {"system": {}, "fit": {}}
    for name, value in reach_into_slots(chosen, known).items():
        if name not in known:
            raise unknown(cls.__name__, name, known)
        split["fit" if known[name].section == "fit" else "system"][name] = known[name].check(value)
    return split


def typed_names(cls: type[System], given: dict[str, Any]) -> list[str]:
    """The names of systems that a user typed into slots."""
    known = options(cls)
    slots = {key: value for key, value in given.items() if key in known and known[key].needs is not None}
    return [name for value in slots.values() for name in names_in(value)]
