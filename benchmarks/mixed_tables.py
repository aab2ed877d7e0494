"""Tables of numbers and categories after equal time: our systems beside CTGAN and TVAE, by measures of others.

    python -m venv PEERS && PEERS/bin/pip install -c constraints.txt torch ctgan sdmetrics scikit-learn pandas pyarrow
    pip install -c constraints.txt -e ".[parquet]"
    python -m benchmarks.mixed_tables FILE --peers-python PEERS/bin/python [--tables adult] [--systems made vae]

FILE is an NPZ archive with `NAME_num`, `NAME_num_cols`, `NAME_cat` (codes), `NAME_cat_cols`, `NAME_cat_J_values`, and
`NAME_n_train` where a table has rows for testing of its own, which come last; of others a quarter is drawn for it. All
train on one thread for the same seconds with their own defaults. Ours take the table as it is, a share of its training
rows for validation; their seconds are those of training steps. The peers take no missing values and are told which
columns are discrete: a missing category is one of its own, a missing number is the mean with one more column that says
so, and their samples are rounded to the decimals of nearly all rows and clipped to their range, much as SDV does it.
"codes" are the peers with whole numbers of few values as categories. Their epochs are chosen so that they fill the time
(`benchmarks.peers_tables`), without the preparation.

Measured on held-out rows: "told from real" is the area under the ROC curve of a gradient boosting classifier
(scikit-learn) that tells samples from test rows, by cross-validation: 0.5 where it cannot; in brackets the column that
it needs most. Shapes and pairs are SDMetrics' quality report of a single table, with the worst column and pair; as it
comes it looks at the pairs only that depend on each other clearly, and at all of them under "all pairs" (numbers beside
a category are in ten bins, which one far value moves). The row of real rows is what training rows get.

Writes `results/mixed_tables.json` and `.md`, in which tables and systems that are not named keep their figures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

import fivefold
from benchmarks.common import RESULTS, machine, number, write_markdown, write_result
from fivefold.errors import FivefoldError

TABLES = ("adult", "beijing")
SYSTEMS = ("made", "spline-flow", "vae", "ddpm", "score-sde", "rbm", "sparse-transformer")
PEERS = {"CTGAN": ("CTGAN", 0), "TVAE": ("TVAE", 0), "CTGAN, codes": ("CTGAN", 40), "TVAE, codes": ("TVAE", 40)}
REAL = "real rows"
MISSING = "?"  # a category, in the archive and wherever none may be missing
FLAG = " is missing"  # the column that says so of a number
FOLDS = 5
NEARLY_ALL = 0.99  # of the values
ROOT = Path(__file__).parents[1]
NOTES = """
Told from real: area under the ROC curve of a gradient boosting classifier that tells samples from test rows, over
five folds; 0.5 where it cannot. In brackets the column that it needs most. Shapes and pairs: SDMetrics' quality
report, with the worst column and pair; it looks at pairs only that depend on each other clearly, at all of them under
"all pairs". Codes: whole numbers of few values are given to the peer as categories. Seconds: of training alone, on one
thread. The row of real rows is what training rows get.
"""


class Table(NamedTuple):
    """Rows for training and for testing: categories as text, numbers as whole ones where they are, NaN and None."""

    train: pd.DataFrame
    test: pd.DataFrame

    @property
    def categories(self) -> list[str]:
        return [name for name in self.train if not pd.api.types.is_numeric_dtype(self.train[name])]


def read(path: Path, name: str, seed: int = 0) -> Table:
    """A table of the archive; the rows of its training part shuffled."""
    with np.load(path, allow_pickle=False) as arrays:
        numbers = pd.DataFrame(arrays[f"{name}_num"], columns=arrays[f"{name}_num_cols"].tolist())
        codes = pd.DataFrame(arrays[f"{name}_cat"], columns=arrays[f"{name}_cat_cols"].tolist())
        values = [arrays[f"{name}_cat_{j}_values"].astype(object) for j in range(codes.shape[1])]
        own = int(arrays[f"{name}_n_train"]) if f"{name}_n_train" in arrays else None
    for column in numbers:
        if (numbers[column] == numbers[column].round()).all():
            numbers[column] = numbers[column].astype(np.int64)
    texts = {column: pd.Series(v[codes[column]], dtype=object) for column, v in zip(codes, values, strict=True)}
    table = pd.concat([numbers, pd.DataFrame(texts).replace({MISSING: None})], axis=1)
    order = np.random.default_rng(seed).permutation(len(table) if own is None else own)
    test = table.iloc[order[: len(table) // 4]] if own is None else table.iloc[own:]
    train = table.iloc[order[len(table) // 4 :]] if own is None else table.iloc[order]
    return Table(train.reset_index(drop=True), test.reset_index(drop=True))


# --- ours -------------------------------------------------------------------------------------------


def ours(system: str, table: Table, seconds: float, rows: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Samples of a system of ours, with its seconds and speed."""
    data = fivefold.load_data(table.train, test=table.test)
    events: list[dict[str, Any]] = []
    started = time.perf_counter()
    model = fivefold.fit(system, data, budget=f"{seconds:g}s", device="cpu", watch=events.append)
    wall = time.perf_counter() - started
    started = time.perf_counter()
    samples = model.sample(rows, seed=0)
    sampling = time.perf_counter() - started
    last = next(event for event in reversed(events) if "seconds" in event)
    spent = {"seconds": last["seconds"], "steps": last["step"], "wall": wall}
    return samples[list(table.train)], {**spent, "rows_per_second": rows / sampling}


# --- the peers --------------------------------------------------------------------------------------


def peer(name: str, table: Table, seconds: float, rows: int, python: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """As `ours`, of one of the peers."""
    model, most = PEERS[name]
    given, discrete = for_peers(table, most)
    request = {"model": model, "discrete": discrete, "seconds": seconds, "rows": rows}
    with tempfile.TemporaryDirectory() as folder:
        answer = asked("train", Path(folder), python, request, train=given)
        samples = pd.read_parquet(Path(folder) / "samples.parquet")
    return from_peers(samples, table), answer


def for_peers(table: Table, most: int) -> tuple[pd.DataFrame, list[str]]:
    """The training rows without a missing value, and the names of the columns that are discrete.

    Whole numbers of at most `most` values are, as text.
    """
    made = dict[str, pd.Series]()
    discrete = []
    for name, values in table.train.items():
        if name in table.categories:
            made[name] = values.fillna(MISSING)
            discrete.append(name)
        elif pd.api.types.is_integer_dtype(values) and values.nunique() <= most:
            made[name] = values.astype(str)
            discrete.append(name)
        else:
            made[name] = values.astype(float).fillna(values.mean())
            if values.isna().any():
                made[name + FLAG] = values.isna().map({True: "yes", False: "no"})
                discrete.append(name + FLAG)
    return pd.DataFrame(made), discrete


def from_peers(samples: pd.DataFrame, table: Table) -> pd.DataFrame:
    """Samples in the form of the table: numbers with its decimals and within its range."""
    made = dict[str, pd.Series]()
    for name, values in table.train.items():
        found = samples[name]
        if name in table.categories:
            made[name] = found.astype(object).replace({MISSING: None})
            continue
        found = found.astype(float).round(_decimals(values)).clip(values.min(), values.max())
        if pd.api.types.is_integer_dtype(values):
            found = found.astype(values.dtype)
        made[name] = found.mask(samples[name + FLAG] == "yes") if name + FLAG in samples else found
    return pd.DataFrame(made)


def _decimals(values: pd.Series) -> int:
    """That nearly all values have: two of 43,824 temperatures in the table of Beijing are not whole."""
    given = values.dropna()
    whole = (np.isclose(given.round(digits), given, rtol=0, atol=1e-9).mean() for digits in range(9))
    return next((digits for digits, share in enumerate(whole) if share >= NEARLY_ALL), 9)


def asked(work: str, folder: Path, python: str, request: dict[str, Any], **tables: pd.DataFrame) -> dict[str, Any]:
    """What `benchmarks.peers_tables` answers in the peers' environment."""
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
    (folder / "request.json").write_text(json.dumps(request))
    command = [python, "-m", "benchmarks.peers_tables", work, str(folder)]
    alone = {"OMP_NUM_THREADS": "1", "LOKY_MAX_CPU_COUNT": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **alone})
    return json.loads((folder / "answer.json").read_text())


# --- what is measured -------------------------------------------------------------------------------


def measure(samples: pd.DataFrame, table: Table, python: str) -> dict[str, Any]:
    """All measures of samples beside as many test rows."""
    real = table.test.sample(len(samples), random_state=0)
    auc, error, by = told_from_real(samples, real, table.categories)
    with tempfile.TemporaryDirectory() as folder:
        filled = [one.fillna(dict.fromkeys(table.categories, MISSING)) for one in (real, samples)]
        request = {"categories": table.categories}
        scores = asked("report", Path(folder), python, request, real=filled[0], samples=filled[1])
    return {"auc": auc, "auc_error": error, "told_by": by, **scores}


def told_from_real(
    samples: pd.DataFrame, real: pd.DataFrame, categories: list[str]
) -> tuple[float, float, dict[str, float]]:
    """Area under the ROC curve of a classifier of samples, its standard error over folds, and what each column adds.

    That is by how much the area shrinks when the column is shuffled, largest first.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import StratifiedKFold

    both = pd.concat([samples, real], ignore_index=True)
    for name in categories:
        both[name] = both[name].fillna(MISSING).astype("category")
    x = both.astype({name: float for name in both if name not in categories})
    y = np.repeat([1, 0], [len(samples), len(real)])
    areas, losses = [], []
    for rows, held in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(x, y):
        model = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=0)
        model.fit(x.iloc[rows], y[rows])
        found = permutation_importance(
            model, x.iloc[held], y[held], scoring="roc_auc", n_repeats=1, random_state=0, n_jobs=1
        )
        losses.append(found.importances_mean)
        areas.append(_area(model.predict_proba(x.iloc[held])[:, 1], y[held]))
    added = pd.Series(np.mean(losses, 0), index=x.columns).sort_values(ascending=False).round(4)
    return float(np.mean(areas)), float(np.std(areas, ddof=1) / FOLDS**0.5), added.to_dict()


def _area(scores: np.ndarray, y: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, scores))


# --- the page ---------------------------------------------------------------------------------------


def headline(tables: dict[str, dict[str, Any]]) -> str:
    """On how many tables the best of ours is told from real rows less well than the best peer."""
    won = compared = 0
    for table in tables.values():
        best = {True: math.inf, False: math.inf}
        for name, row in table["systems"].items():
            if name != REAL and "auc" in row:
                best[name in PEERS] = min(best[name in PEERS], row["auc"])
        if math.isfinite(best[True]) and math.isfinite(best[False]):
            compared += 1
            won += best[False] < best[True]
    return f"on {won} of {compared} mixed tables the best of ours is harder to tell from real rows than the best peer"


def parts(tables: dict[str, dict[str, Any]]) -> dict[str, list[list[str]]]:
    """A table in Markdown for each, best first."""
    found = {}
    for name, table in tables.items():
        title = f"{name}: {table['train']:,} training rows, {table['columns']} columns"
        head = ["system", "told from real", "shapes", "pairs", "all pairs", "seconds", "rows per second", "machine"]
        rows = sorted(table["systems"].items(), key=lambda item: (item[0] != REAL, item[1].get("auc", 2)))
        found[title] = [head, *[_line(system, row) for system, row in rows]]
    return found


def _line(system: str, row: dict[str, Any]) -> list[str]:
    label = system if system == REAL or system in PEERS else f"`{system}`"
    if "error" in row:
        return [label, row["error"], *[""] * 5, row["machine"]]
    by = next(iter(row["told_by"]))
    kinds = (("shapes", "by_column"), ("pairs", "by_pair"), ("all_pairs", "by_all_pairs"))
    return [
        label, f"{row['auc']:.3f} ± {row['auc_error']:.3f} ({by})",
        *[f"{row[kind]:.3f} ({_worst(row[place])})" for kind, place in kinds],
        number(row.get("seconds")), number(row.get("rows_per_second"), ",.0f"), row["machine"],
    ]  # fmt: skip


def _worst(scores: dict[str, float]) -> str:
    name, score = min(scores.items(), key=lambda item: item[1], default=("", None))
    return f"{name} {number(score, '.2f')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--tables", nargs="*", default=list(TABLES), help="names in the archive")
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS), help="of ours")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--only-peers", action="store_true")
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds of training each")
    parser.add_argument("--rows", type=int, default=5000, help="samples and test rows that are measured, at most")
    parser.add_argument("--peers-python", default=sys.executable, help="of the environment with ctgan and sdmetrics")
    parser.add_argument("--keep", type=Path, help="a folder for the samples, as Parquet")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.out / "mixed_tables.json"
    tables = json.loads(path.read_text())["tables"] if path.exists() else {}
    chosen = [REAL, *([] if given.only_ours else given.peers), *([] if given.only_peers else given.systems)]
    for name in given.tables:
        table = read(given.file, name)
        facts = {"train": len(table.train), "test": len(table.test), "columns": table.train.shape[1]}
        systems = tables.setdefault(name, {**facts, "systems": {}})["systems"]
        rows = min(given.rows, len(table.test))
        for system in chosen:
            if system == REAL and systems.get(REAL, {}).get("rows") == rows:
                continue
            torch.manual_seed(0)
            row: dict[str, Any]
            try:
                if system == REAL:
                    samples, row = table.train.head(rows), {}
                elif system in PEERS:
                    samples, row = peer(system, table, given.budget, rows, given.peers_python)
                else:
                    samples, row = ours(system, table, given.budget, rows)
                row |= {"rows": rows, **measure(samples, table, given.peers_python)}
                if given.keep is not None:
                    given.keep.mkdir(parents=True, exist_ok=True)
                    samples.to_parquet(given.keep / f"{name}-{system}.parquet", index=False)
            except (FivefoldError, subprocess.CalledProcessError) as error:
                row = {"error": " ".join(str(error).split())}
            systems[system] = {**row, "budget": given.budget, "machine": machine()}
            print(name, *_line(system, systems[system])[:-1], sep=" | ", flush=True)
            line = headline(tables)
            write_result("mixed_tables", line, {"tables": tables}, given.out)
            write_markdown("mixed_tables", line, parts(tables), given.out)
            with (given.out / "mixed_tables.md").open("a") as page:
                page.write(NOTES)


if __name__ == "__main__":
    main()
