"""Two-dimensional densities in closed form, to look at and to check models against: exact samples, density, entropy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SIZE = 10_000  # examples of each


@dataclass(frozen=True)
class Toy:
    """A density on the plane.

    `sample(rng, n)` gives points `(n, 2)` and the component `(n,)` each came from; `log_density` nats
    `(n,)` of points; `entropy` is in nats; `reach` such that all but a millionth lies in |x|, |y| < reach.
    """

    sample: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
    log_density: Callable[[np.ndarray], np.ndarray]
    entropy: float
    reach: float


def _log_normal(x: np.ndarray, mean: np.ndarray | float, std: np.ndarray | float) -> np.ndarray:
    return -0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * math.log(2 * math.pi)


def _log_mean_exp(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.logaddexp.reduce(values, axis=axis) - math.log(values.shape[axis])


# Two half circles, one turned over and shifted, with Gaussian noise.
_MOONS_NOISE = 0.1


def _moon_centres(angle: np.ndarray, moon: np.ndarray) -> np.ndarray:
    upper = np.stack([np.cos(angle), np.sin(angle)], -1)
    return np.where(moon[..., None] == 0, upper, np.array([1.0, 0.5]) - upper)


def _sample_moons(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    moon = rng.integers(0, 2, n)
    return _moon_centres(rng.uniform(0, math.pi, n), moon) + _MOONS_NOISE * rng.standard_normal((n, 2)), moon


def _moons(x: np.ndarray) -> np.ndarray:
    """By the midpoint rule over the angle: 1e-9 at 256 points, as they lie closer than the noise is wide."""
    angle = (np.arange(256) + 0.5) * math.pi / 256
    centres = np.concatenate([_moon_centres(angle, np.full(256, moon)) for moon in (0, 1)])
    return _log_mean_exp(_log_normal(x[:, None], centres, _MOONS_NOISE).sum(-1))


# Three circles, each as likely, with Gaussian noise across.
_RINGS, _RINGS_NOISE = np.array([1.0, 2.0, 3.0]), 0.1


def _sample_rings(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    ring, angle = rng.integers(0, len(_RINGS), n), rng.uniform(0, 2 * math.pi, n)
    radius = _RINGS[ring] + _RINGS_NOISE * rng.standard_normal(n)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1), ring


def _rings(x: np.ndarray) -> np.ndarray:
    radius = np.linalg.norm(x, axis=-1)
    return _log_mean_exp(_log_normal(radius[:, None], _RINGS, _RINGS_NOISE)) - np.log(2 * math.pi * radius)


# Every second square of side 2 in [-4, 4] x [-4, 4].
def _sample_checkerboard(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    cell, inside = rng.integers(0, 8, n), rng.uniform(0, 2, (n, 2))
    row = cell // 2
    corner = np.stack([4 * (cell % 2) + 2 * (row % 2), 2 * row], -1) - 4.0
    return corner + inside, cell


def _checkerboard(x: np.ndarray) -> np.ndarray:
    column, row = np.floor((x + 4) / 2).T
    filled = ((column + row) % 2 == 0) & (np.abs(x) < 4).all(-1)
    return np.where(filled, -math.log(32), -np.inf)


# Eight round Gaussians on a circle.
_GAUSSIANS = 4 * np.stack([np.cos(np.arange(8) * math.pi / 4), np.sin(np.arange(8) * math.pi / 4)], -1)
_GAUSSIANS_STD = 0.5


def _sample_gaussians(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    which = rng.integers(0, 8, n)
    return _GAUSSIANS[which] + _GAUSSIANS_STD * rng.standard_normal((n, 2)), which


def _gaussians(x: np.ndarray) -> np.ndarray:
    return _log_mean_exp(_log_normal(x[:, None], _GAUSSIANS, _GAUSSIANS_STD).sum(-1))


# Five arms, each a long Gaussian turned by an angle that grows with the radius (which keeps areas).
_ARMS, _ARM_STD = np.arange(5) * 2 * math.pi / 5, np.array([0.6, 0.15])


def _turn(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], -1)


def _twist(x: np.ndarray) -> np.ndarray:
    return 0.5 * np.linalg.norm(x, axis=-1)


def _sample_pinwheel(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    arm = rng.integers(0, 5, n)
    x = np.array([2.0, 0.0]) + _ARM_STD * rng.standard_normal((n, 2))
    return _turn(x, _ARMS[arm] + _twist(x)), arm


def _pinwheel(x: np.ndarray) -> np.ndarray:
    back = _turn(x[:, None], -(_ARMS + _twist(x)[:, None]))
    return _log_mean_exp(_log_normal(back, np.array([2.0, 0.0]), _ARM_STD).sum(-1))


# The entropies but the checkerboard's are by quadrature of the densities above (and tested so).
TOYS = {
    "moons": Toy(_sample_moons, _moons, 1.007552, 2.6),
    "rings": Toy(_sample_rings, _rings, 2.647799, 3.6),
    "checkerboard": Toy(_sample_checkerboard, _checkerboard, math.log(32), 4.0),
    "gaussians": Toy(_sample_gaussians, _gaussians, 3.524726, 7.0),
    "pinwheel": Toy(_sample_pinwheel, _pinwheel, 2.035272, 5.5),
}
