"""RNODE: FFJORD with straight ways."""

from __future__ import annotations

from fivefold.flow._continuous import FreeFormSystem
from fivefold.options import option


class RNODE(FreeFormSystem):
    """RNODE (survey 6.6.1; Finlay et al., 2020).

    FFJORD, whose loss also has the kinetic energy of each way, the integral of |f|^2, and the squared Frobenius norm
    of the velocity's Jacobian along it, estimated by the trace's own probe. Both are solved beside the state. The ways
    become nearly straight and of constant speed: training needs few fixed steps, samples few adaptive ones.

    The density is as FFJORD's: it does not depend on the penalties.
    """

    presets = {
        "cifar10": {
            "flows": 2, "layers": 3, "channels": 64, "time_layer": "concat", "dense_dims": 0, "tolerance": 1e-5,
            "sampling_tolerance": 1e-5, "gradients": "adjoint", "margin": 0.05, "lr": 1e-3, "batch_size": 200,
        },
    }  # fmt: skip

    tolerance = 1e-2
    kinetic: float = option(0.01, "weight of the kinetic energy, in nats", least=0, tune=(1e-4, 1.0), log=True)
    jacobian: float = option(
        0.01, "weight of the Jacobian's squared norm, in nats", least=0, tune=(1e-4, 1.0), log=True
    )

    @property
    def weights(self) -> tuple[float, float]:
        return self.kinetic, self.jacobian
