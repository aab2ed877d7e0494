"""What benchmarks compute beside timing: how tables are cleaned and compared."""

import numpy as np
import pytest
import torch

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
