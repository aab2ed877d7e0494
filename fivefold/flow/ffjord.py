"""FFJORD: continuous-time flows with free-form dynamics."""

from __future__ import annotations

from fivefold.flow._continuous import FreeFormSystem
from fivefold.options import fixed


class FFJORD(FreeFormSystem):
    """FFJORD (survey 6.6; Grathwohl et al., 2019).

    Examples become noise along an ordinary differential equation whose velocity is any smooth network (survey Eq. 41).
    The log-density changes by the trace of the velocity's Jacobian (Eq. 44): Hutchinson's estimate in training, a
    probe for each example and the whole way; exact when scoring up to `exact_dims` dimensions. An adaptive solver
    takes as many evaluations as the tolerance asks, there and back. Flows of vectors come after an actnorm.

    Beyond `exact_dims` the density is an average of unbiased logarithms with a standard error: an estimate, or a
    bound in expectation where a dimension is discrete.
    """

    presets = {
        "cifar10": {
            "flows": 2, "layers": 3, "channels": 64, "time_layer": "concat", "dense_dims": 0, "tolerance": 1e-5,
            "sampling_tolerance": 1e-5, "gradients": "adjoint", "margin": 0.05, "lr": 1e-3, "batch_size": 900,
        },
        "mnist": {
            "flows": 2, "layers": 3, "channels": 64, "time_layer": "concat", "dense_dims": 0, "tolerance": 1e-5,
            "sampling_tolerance": 1e-5, "gradients": "adjoint", "margin": 1e-6, "lr": 1e-3, "batch_size": 900,
        },
    }  # fmt: skip
    published = {
        "cifar10": (2_717_764 / 2, "half of a count of the reference implementation with twice the flows (4 in a row)")
    }

    steps = fixed(0)
