"""A file of log-probabilities: a row an example, with what the numbers are."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import torch

from fivefold.data import Split, load_data, load_examples
from fivefold.errors import DataError, RunError
from fivefold.files import replacing
from fivefold.run import Run
from fivefold.space import Space
from fivefold.system import Score, System

CHUNK = 2000  # examples encoded at once


def score_file(directory: str | Path, out: str | Path, *, data: str | None = None, trust: str | None = None) -> str:
    """Score examples by a run into a CSV or Parquet file; says in a line what was scored and how.

    Columns: log_prob_nats (in the units of the user's data), bits_per_dim (empty unless every dimension
    is discrete), kind, standard_error (nats). Rows are in the order of the file given.

    Args:
        directory: of the run.
        out: FILE.csv or FILE.parquet; an existing one is replaced when the new one is whole.
        data: source of examples; None scores the run's own test split.
        trust: module of a system outside the package that may be imported.

    Raises:
        Unfit: the system has no density.
        DataError, RunError: the data or the run cannot be read.
    """
    out = Path(out)
    writers = {".csv": pd.DataFrame.to_csv, ".parquet": pd.DataFrame.to_parquet}
    if out.suffix.lower() not in writers:
        raise DataError(f"cannot write scores to {out.name!r}: choose a suffix of {', '.join(writers)}")
    run = Run.open(directory, trust=trust)
    system = run.load_system()
    split, what = (run.load_data().test, "its test split") if data is None else _other(run, data, system.data_space)
    frame = score_frame(system, split)
    try:
        with replacing(out) as path:
            writers[out.suffix.lower()](frame, path, index=False)
    except ImportError as error:
        raise RunError("Parquet files need the library 'pyarrow': pip install 'fivefold[parquet]'") from error
    mean, spread = frame["log_prob_nats"].mean(), frame["log_prob_nats"].sem()
    bits = f", {frame['bits_per_dim'].mean():.4g} bits per dimension" if system.data_space.discrete else ""
    note = f", {system.density_note}" if system.density_note else ""
    kind = f"{system.density.value}{note}"
    return f"scored {len(frame):,} examples of {what}: {mean:.4g} ± {spread:.2g} nats{bits} ({kind}); wrote {out}"


def score_frame(system: System, split: Split) -> pd.DataFrame:
    """One row an example: see `score_file`."""
    scores = [system.score_encoded(split.batch(index)) for index in torch.arange(len(split)).split(CHUNK)]
    score = Score(*(torch.cat(parts) for parts in zip(*scores, strict=True)))
    bits = -score.log_prob / (system.data_space.dims * math.log(2))
    return pd.DataFrame(
        {
            "log_prob_nats": score.log_prob.numpy(),
            "bits_per_dim": bits.numpy() if system.data_space.discrete and system.density.comparable else None,
            "kind": system.density.value,
            "standard_error": score.standard_error.numpy(),
        }
    )


def _other(run: Run, source: str, space: Space) -> tuple[Split, str]:
    """The examples of a source, and how they relate to what the run was trained on."""
    arguments = {**run.record["data"]["arguments"], "test": None}
    split = load_examples(source, space, **arguments)
    trained = run.record["data"]
    try:
        same = load_data(source, **trained["arguments"]).fingerprint == trained["fingerprint"]
    except DataError:  # too few examples to split: certainly not the data that were trained on
        same = False
    if same:
        return split, f"{source} (the data the run was trained on, training examples included)"
    return split, f"{source} (other data than the run was trained on)"
