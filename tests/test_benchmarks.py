"""What benchmarks compute beside timing: how tables are cleaned and compared."""

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import mixed_tables
from benchmarks.tables import clean, paired, resolution, split


def table(n=400):
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, n))
    tenths = np.round(generator.normal(size=n), 1)
    nearly, related = first + 0.01 * second, first + 0.5 * second
    return np.stack([first, np.full(n, 3.0), nearly, tenths, related, -first, second], 1)


def test_constant_and_correlated_columns_go_and_discretised_ones_are_given_noise_of_their_resolution():
    x = table()
    cleaned = clean(x)
    assert cleaned.kept.tolist() == [0, 3, 4, 6]  # of correlated columns, of either sign, the first stays
    assert cleaned.noisy.tolist() == [3]
    np.testing.assert_array_equal(cleaned.x[:, [0, 2, 3]], x[:, [0, 4, 6]])
    noise = cleaned.x[:, 1] - x[:, 3]
    assert np.abs(noise).max() <= 0.05 + 1e-12
    assert noise.std() == pytest.approx(0.1 / 12**0.5, rel=0.1)
    assert len(np.unique(cleaned.x[:, 1])) == len(x)
    np.testing.assert_array_equal(clean(x).x, cleaned.x)


def test_incomplete_rows_go_before_anything_else():
    x = table()
    x[5, 3] = np.nan
    assert len(clean(x).x) == len(x) - 1


def test_resolution_is_the_smallest_step_but_for_rounding():
    assert resolution(np.array([0.1, 0.3, 0.1 + 0.2, 0.6])) == pytest.approx(0.2)


def test_the_parts_of_a_table_are_real_scaled_by_the_training_part_and_share_no_row():
    x = clean(table()).x
    data = split(x)
    assert [len(part) for part in (data.train, data.valid, data.test)] == [324, 36, 40]
    assert all(column.kind == "real" for column in data.space.columns)
    parts = [data.space.decode(part.batch(slice(None)).x) for part in (data.train, data.valid, data.test)]
    np.testing.assert_allclose(np.sort(np.concatenate(parts)[:, 0]), np.sort(x[:, 0]), atol=1e-5)


def test_differences_are_paired():
    common, noise = 10 * torch.randn(1000), 0.1 * torch.randn(1000)
    mean, error = paired(common + 1 + noise, common)
    assert mean == pytest.approx(1, abs=0.02)
    assert error == pytest.approx(0.1 / 1000**0.5, rel=0.1)


def mixed(n=300):
    """A table with whole numbers, fractions, missing numbers and missing categories."""
    generator = np.random.default_rng(0)
    number = generator.normal(size=n).round(2)
    number[::7] = np.nan
    category = pd.Series(generator.choice(["a", "b"], n), dtype=object)
    category[::5] = None
    given = pd.DataFrame({"few": generator.integers(0, 5, n), "x": number, "name": category})
    return mixed_tables.Table(given[: n // 2], given[n // 2 :].reset_index(drop=True))


@pytest.mark.parametrize("most", [0, 40])
def test_what_the_peers_are_given_misses_nothing_and_comes_back_as_it_was(most):
    table = mixed()
    given, discrete = mixed_tables.for_peers(table, most)
    assert not given.isna().any().any()
    assert discrete == [*(["few"] if most else []), "x is missing", "name"]
    pd.testing.assert_frame_equal(mixed_tables.from_peers(given, table), table.train)


def test_samples_of_the_peers_are_rounded_and_clipped_to_the_training_rows():
    table = mixed()
    table.train.loc[1, "x"] = 1 / 3  # one of many
    given, _ = mixed_tables.for_peers(table, 0)
    given.loc[1, "x"], given.loc[2, "few"] = 0.1234, 17.3
    found = mixed_tables.from_peers(given, table)
    assert (found["x"][1], found["few"][2]) == (0.12, 4)


def test_a_classifier_tells_other_rows_and_not_rows_of_the_same_table():
    table = mixed(2000)
    same, _, _ = mixed_tables.told_from_real(table.train, table.test, table.categories)
    other = table.train.assign(x=table.train["x"] + 1)
    told, _, by = mixed_tables.told_from_real(other, table.test, table.categories)
    assert same == pytest.approx(0.5, abs=0.05)
    assert told > 0.6
    assert next(iter(by)) == "x"


def test_a_table_is_read_with_its_own_test_rows_and_whole_numbers(tmp_path):
    arrays = {
        "t_num": np.array([[1, 0.5], [2, 0.25], [3, np.nan], [4, 1.0]]), "t_num_cols": np.array(["whole", "real"]),
        "t_cat": np.array([[0], [1], [0], [1]]), "t_cat_cols": np.array(["name"]),
        "t_cat_0_values": np.array(["?", "a"]), "t_n_train": np.array(3),
    }  # fmt: skip
    np.savez(tmp_path / "t.npz", **arrays)
    table = mixed_tables.read(tmp_path / "t.npz", "t")
    assert (len(table.train), table.test["whole"].tolist(), table.test["name"].tolist()) == (3, [4], ["a"])
    assert sorted(table.train["whole"]) == [1, 2, 3]
    assert (table.train["whole"].dtype.kind, table.train["real"].isna().sum()) == ("i", 1)
    assert table.train["name"].isna().sum() == 2
    assert table.categories == ["name"]


def test_the_headline_compares_the_best_of_ours_with_the_best_peer():
    rows = {"real rows": {"auc": 0.5}, "made": {"auc": 0.7}, "vae": {"error": "no"}, "TVAE": {"auc": 0.8}}
    assert mixed_tables.headline({"t": {"systems": rows}}).startswith("on 1 of 1 mixed tables")
    assert mixed_tables.headline({"t": {"systems": rows | {"CTGAN": {"auc": 0.6}}}}).startswith("on 0 of 1")
