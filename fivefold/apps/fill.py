"""Filling in what is missing of examples by a trained system: cells of a table, parts of images, texts and sounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from fivefold.data import load_examples
from fivefold.data.partial import TEXTS, read_partial, write_filled
from fivefold.data.writers import check_suffix, grid, save_examples
from fivefold.errors import DataError, Unfit
from fivefold.files import replacing
from fivefold.run import Run
from fivefold.space import Batch, Space
from fivefold.space.partial import encode_partial, put_back
from fivefold.system import System

PARTS = ("upper", "lower", "left", "right", "center")


def fill_file(
    directory: str | Path,
    out: str | Path,
    *,
    data: str | None = None,
    mask: str | None = None,
    count: int = 16,
    draws: int = 1,
    steps: int | None = None,
    seed: int | None = 0,
    condition: str | None = None,
    read: str = "",
    trust: str | None = None,
) -> str:
    """Fill in what is missing of a file's examples by a run; says in two lines what was done and how.

    Args:
        directory: of the run.
        out: file to write. Tables: text in the dialect of `data`, .parquet, .npz. Others: as `sample` writes them; in a
            .png each row has an example without the missing part (grey) and then its draws.
        data: of a table the rows, with empty cells or without columns; of others a source of examples, the run's own
            test split unless given.
        mask: of what is no table, the part that is missing: upper, lower, left, right, center (the middle half of each
            side), or an image or array (.png, .npy) of an example's size that is not 0 where it is missing.
        count: of what is no table, how many examples, the first of them.
        draws: for each example.
        steps: of chains, or particles; the system's own unless given.
        seed: the same seed gives the same draws.
        condition: one for all, where the model has one; else those of the data.
        read: how a text file of rows is written: see `load_data`.
        trust: module of a system outside the package that may be imported.

    Raises:
        Unfit: the system cannot draw that part given the rest.
        DataError, RunError: the data or the run cannot be read.
    """
    run = Run.open(directory, trust=trust)
    system = run.load_system()
    if not system.filling:
        raise Unfit(f"{run.record['system']} cannot fill in: it has no way to draw what is missing given the rest")
    wanted = {"draws": draws, "steps": steps, "seed": seed}
    if system.data_space.kind == "table":
        if mask is not None:
            raise DataError("--mask is for images, text and sound; in tables leave the missing cells empty")
        if data is None:
            raise DataError("give the rows to fill in: --data FILE, their missing cells empty")
        read = read or run.record["data"]["arguments"].get("read", "")
        said = _fill_table(system, data, Path(out), read, condition, wanted)
    else:
        if mask is None:
            raise DataError(f"say what is missing: --mask {'|'.join(PARTS)} or a FILE that is not 0 there")
        batch = _examples(run, system.data_space, data, count)
        said = _fill_rest(system, batch, missing_part(mask, system.data_space), Path(out), condition, wanted)
    return f"{said}; wrote {out}\nhow ({steps or system.fill_steps} steps): {system.filling}"


# --- tables -------------------------------------------------------------------------------------------


def _fill_table(
    system: System, source: str, out: Path, read: str, condition: str | None, wanted: dict[str, Any]
) -> str:
    space = system.data_space
    if out.suffix.lower() not in (*TEXTS, ".parquet", ".npz"):
        raise DataError(f"cannot write a table to {out.name!r}: choose a suffix of .csv, .tsv, .parquet, .npz")
    check_suffix(out.with_suffix(".csv"), space)  # whether its folder exists
    frame, written = read_partial(source, space, read)
    filled = system.fill_in(frame, _conditions(space, frame, condition), **wanted)
    write_filled(out, space, written, frame, filled, wanted["draws"])
    names = [column.name for column in space.columns] + [one.name for one in space.made]
    cells = sum(len(frame) if name not in frame else int(frame[name].isna().sum()) for name in names)
    given = {*names, *(column.name for column in (space.condition.columns if space.condition else ()))}
    others = [str(name) for name in frame if name not in given]
    more = f", {wanted['draws']} draws of each" if wanted["draws"] > 1 else ""
    kept = f"; not of the model and kept as they are: {', '.join(others)}" if others else ""
    return f"filled in {cells:,} missing cells of {len(frame):,} rows{more}{kept}"


def _conditions(space: Space, frame: pd.DataFrame, condition: str | None) -> Any:
    """Of each row by its columns, or one for all."""
    if space.condition is None or condition is not None:
        return condition if space.condition is None or condition is None else space.condition.parse(condition)
    names = [column.name for column in space.condition.columns]
    lacking = [name for name in names if name not in frame or frame[name].isna().any()]
    if lacking:
        raise DataError(
            f"the model is given {', '.join(names)}, and there are rows without {', '.join(lacking)}: put it in, or "
            "give one for all with --condition"
        )
    return frame[names]


# --- images, text, sound --------------------------------------------------------------------------------


def _examples(run: Run, space: Space, source: str | None, count: int) -> Batch:
    """The first `count` of a source, or of the run's test split."""
    split = (
        run.load_data().test
        if source is None
        else load_examples(source, space, **{**run.record["data"]["arguments"], "test": None})
    )
    return split.batch(slice(0, count))


def _fill_rest(
    system: System, batch: Batch, missing: np.ndarray, out: Path, condition: str | None, wanted: dict[str, Any]
) -> str:
    space, draws = system.data_space, wanted["draws"]
    check_suffix(out, space)
    given = space.decode(batch.x)
    x, known = encode_partial(space, given, missing)
    encoded = batch.condition
    if condition is not None and space.condition is not None:
        encoded = system._encode_condition(space.condition.parse(condition), len(x))
    parts = [None if part is None else part.repeat_interleave(draws, 0) for part in (x, known, encoded)]
    filled = system.fill_encoded(*parts, steps=wanted["steps"], seed=wanted["seed"])  # type: ignore[arg-type]
    made = put_back(space, given, space.decode(filled), draws, missing)
    if out.suffix.lower() == ".png":
        _write_picture(out, space, x, known, made, draws)
    else:
        labels = [f"{row + 1}.{draw + 1}" for row in range(len(x)) for draw in range(draws)]
        save_examples(out, space, made, labels if space.kind == "image" and draws > 1 else None)
    share = 1 - known.float().mean().item()
    more = f", {draws} draws of each" if draws > 1 else ""
    return f"filled in {share:.0%} of {len(x):,} examples{more}"


def _write_picture(out: Path, space: Space, x: torch.Tensor, known: torch.Tensor, made: np.ndarray, draws: int) -> None:
    """A row for each example: what is known of it, the rest grey, and its draws."""
    grey = (space.levels or 1) // 2
    shown = space.decode(torch.where(known, x, grey))
    images = [image for i, one in enumerate(shown) for image in (one, *made[i * draws : (i + 1) * draws])]
    with replacing(out) as temporary:
        grid(space, np.stack(images), columns=draws + 1).save(temporary, format="PNG")


def missing_part(mask: str, space: Space) -> np.ndarray:
    """True where an example's value is missing: `(H, W)` of images, `(T,)` of others; see `fill_file`."""
    sides = space.shape[1:] if space.kind == "image" else space.shape
    if mask not in PARTS:
        return _mask_file(mask, sides)
    if mask in ("upper", "lower") and len(sides) < 2:
        raise DataError(f"--mask {mask} is for images; {space.kind} data have left, right and center")
    missing = np.zeros(sides, dtype=bool)
    height, width = sides[0], sides[-1]
    middle = tuple(slice(side // 4, side - side // 4) for side in sides)
    where: dict[str, Any] = {
        "upper": np.s_[: height // 2],
        "lower": np.s_[height // 2 :],
        "left": np.s_[..., : width // 2],
        "right": np.s_[..., width // 2 :],
        "center": middle,
    }
    missing[where[mask]] = True
    return missing


def _mask_file(path: str, sides: tuple[int, ...]) -> np.ndarray:
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"--mask takes {', '.join(PARTS)} or a file of an image or array; there is no {path!r}")
    try:
        mask = np.load(file) if file.suffix.lower() == ".npy" else np.asarray(Image.open(file).convert("L"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an image or an array: {error}") from error
    if mask.shape != sides:
        raise DataError(f"{path} has shape {mask.shape}; expected that of an example, {sides}")
    return mask != 0
