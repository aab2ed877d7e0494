"""A file of log-probabilities: a row an example, with what the numbers are and how unusual the example is."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from fivefold.data import Data, Split, load_data, load_examples
from fivefold.errors import DataError, RunError, Unfit
from fivefold.evaluation.bits import bits
from fivefold.evaluation.unusual import MEASURES, Typical, contributions, typical, unusual
from fivefold.files import replacing
from fivefold.run import Run
from fivefold.space import Space
from fivefold.system import Density, System
from fivefold.tools.roc import roc_area

Array = NDArray[Any]
CHUNK = 2000  # examples encoded at once
EXPLAINED = 20  # rows of a table whose columns are named
NAMED = 3  # columns of each


def score_file(
    directory: str | Path,
    out: str | Path,
    *,
    data: str | None = None,
    by: str = "density",
    against: str | None = None,
    explain: int = EXPLAINED,
    log_z: int | None = None,
    trust: str | None = None,
) -> str:
    """Score examples by a run into a CSV or Parquet file; says in a few lines what was scored and how.

    Columns: log_prob_nats (in the units of the user's data), bits_per_dim or of text bits_per_character (empty unless
    every dimension is discrete), kind, standard_error (nats), rank (1: the most unusual), typicality (where ranked by
    it), of a table unusual_columns (those that make the most unusual rows so, with by how much) and with `against`
    source. Rows are in the order of the file given, those of `against` after them.

    Args:
        directory: of the run.
        out: FILE.csv or FILE.parquet; an existing one is replaced when the new one is whole.
        data: source of examples; None scores the run's own test split.
        by: "density" (the least probable first) or "typicality" (that whose -log p is furthest from the usual first).
        against: a second source; how well the score tells it apart from the first is said.
        explain: of a table, so many of the most unusual rows have their columns named.
        log_z: temperatures by which the constant of an unnormalised density is estimated; None leaves it unknown.
        trust: module of a system outside the package that may be imported.

    Raises:
        Unfit: the system has no density.
        DataError, RunError: the data or the run cannot be read.
    """
    out = Path(out)
    writers = {".csv": pd.DataFrame.to_csv, ".parquet": pd.DataFrame.to_parquet}
    if out.suffix.lower() not in writers:
        raise DataError(f"cannot write scores to {out.name!r}: choose a suffix of {', '.join(writers)}")
    if by not in MEASURES:
        raise DataError(f"cannot rank by {by!r}: choose one of {', '.join(MEASURES)}")
    run = Run.open(directory, trust=trust)
    system = run.load_system()
    if system.density is Density.NONE:
        raise Unfit(f"{type(system).__name__} has no density: it can only sample, so it cannot rank examples")
    if log_z is not None:
        system.normalise(log_z)
    load = cache(run.load_data)  # only where it is needed, and once
    split, what = (load().test, "its test split") if data is None else _other(run, data, system.data_space)
    splits = [split] if against is None else [split, _examples(run, against, system.data_space)]
    like = None if by == "density" else typical(system, load().train, load().valid)
    found = [score_examples(system, one) for one in splits]
    frame = pd.concat([frame_of(system, one) for one in found], ignore_index=True)
    said = [_summary(system, found[0], what)]
    measured = unusual(torch.cat([one.log_prob for one in found]), like).numpy()
    frame["rank"] = pd.Series(measured).rank(method="min", ascending=False).astype(int)
    if like is not None:
        frame["typicality"] = measured
        said.append(
            f"ranked by typicality: how far -log p is from {like.mean:.4g} nats, in standard deviations of "
            f"{like.deviation:.3g} (of {like.examples:,} {like.split} examples)"
        )
    if system.data_space.kind == "table" and explain > 0:
        frame["unusual_columns"], sentence = _explained(load, system, splits, measured, like, explain)
        said.append(sentence)
    if against is not None:
        frame["source"] = np.repeat([data or "test split", against], [len(one) for one in splits])
        said.append(f"{_told_apart(measured, len(split), against, what)}, by {by}")
    if system.density is Density.UNNORMALISED:
        said.append("unnormalised: ranks and differences hold within this model, the numbers have an unknown constant")
    try:
        with replacing(out) as path:
            writers[out.suffix.lower()](frame, path, index=False)
    except ImportError as error:
        raise RunError("Parquet files need the library 'pyarrow': pip install 'fivefold[parquet]'") from error
    return "\n".join([*said, f"wrote {out}"])


class Scored(NamedTuple):
    """Of each example `(N,)` its nats, their standard error, and the dimensions or characters it stands for."""

    log_prob: Tensor
    standard_error: Tensor
    units: Tensor


def score_examples(system: System, split: Split) -> Scored:
    """All of a split, in its order."""
    found = []
    for index in torch.arange(len(split)).split(CHUNK):
        batch = split.batch(index)
        found.append((*system.score_encoded(batch), system.data_space.units(batch.x)))
    return Scored(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def frame_of(system: System, found: Scored) -> pd.DataFrame:
    """A row an example: log_prob_nats, bits, kind and standard_error of `score_file`."""
    unit = "dim" if system.data_space.unit == "dimension" else system.data_space.unit
    each = -found.log_prob / found.units.where(found.units > 0, math.nan) / math.log(2)
    return pd.DataFrame(
        {
            "log_prob_nats": found.log_prob.numpy(),
            f"bits_per_{unit}": each.numpy() if _in_bits(system) else None,
            "kind": system.density.value,
            "standard_error": found.standard_error.numpy(),
        }
    )


def _in_bits(system: System) -> bool:
    return system.data_space.discrete and system.density.comparable


def _summary(system: System, found: Scored, what: str) -> str:
    nats = pd.Series(found.log_prob.numpy())
    value = (
        f", {bits(found.log_prob, found.units).value:.4g} bits per {system.data_space.unit}" if _in_bits(system) else ""
    )
    note = f", {system.density_note}" if system.density_note else ""
    return (
        f"scored {len(nats):,} examples of {what}: {nats.mean():.4g} ± {nats.sem():.2g} nats{value} "
        f"({system.density.value}{note})"
    )


def _explained(
    load: Callable[[], Data], system: System, splits: list[Split], measured: Array, like: Typical | None, most: int
) -> tuple[list[str], str]:
    """For each row of a table the columns that make it unusual, where it is one of the most unusual; and a sentence."""
    words = [""] * len(measured)
    try:
        train = load().train
    except (RunError, DataError) as error:
        return words, f"no columns are named, since the training data cannot be had: {error}"
    order = np.argsort(-measured, kind="stable")[:most]
    start, names = 0, [column.name for column in system.data_space.columns]
    for split in splits:
        own = order[(order >= start) & (order < start + len(split))]
        if len(own):
            shares = contributions(system, split.batch(torch.from_numpy(own - start)), train, like)
            for row, share in zip(own.tolist(), shares, strict=True):
                largest = share.argsort(descending=True, stable=True)[:NAMED].tolist()
                words[row] = ", ".join(f"{names[i]} {share[i]:+.3g}" for i in largest if share[i] > 0)
        start += len(split)
    unit = "nats" if like is None else "standard deviations"
    first = f"the most unusual is example {order[0] + 1}"
    return words, f"{first}, by its {words[order[0]]} {unit}" if words[order[0]] else f"{first}, by no column alone"


def _told_apart(measured: Array, size: int, against: str, what: str) -> str:
    low, high = np.split(measured, [size])
    if min(len(low), len(high)) < 2:
        raise DataError(f"{len(low)} and {len(high)} examples cannot be told apart: both need two or more")
    area = roc_area(low, high)
    return (
        f"area under the ROC curve that tells {against} ({len(high):,} examples) apart from {what}: "
        f"{area.value:.4f} ± {area.error:.2g}"
    )


def _examples(run: Run, source: str, space: Space) -> Split:
    return load_examples(source, space, **{**run.record["data"]["arguments"], "test": None})


def _other(run: Run, source: str, space: Space) -> tuple[Split, str]:
    """The examples of a source, and how they relate to what the run was trained on."""
    split, trained = _examples(run, source, space), run.record["data"]
    try:
        same = load_data(source, **trained["arguments"]).fingerprint == trained["fingerprint"]
    except DataError:  # too few examples to split: certainly not the data that were trained on
        same = False
    if same:
        return split, f"{source} (the data the run was trained on, training examples included)"
    return split, f"{source} (other data than the run was trained on)"
