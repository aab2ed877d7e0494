"""What flows of couplings share: their networks, and the scales of an image."""

from __future__ import annotations

from functools import partial
from typing import Any

from fivefold.bijections.base import Chain, Layer
from fivefold.bijections.coupling import Alternate, alternate_channels, alternate_pixels
from fivefold.bijections.shape import Shape, multi_scale
from fivefold.bijections.transforms import Affine, Transform
from fivefold.flow._system import FlowSystem
from fivefold.nets.conditioner import Conditioner
from fivefold.options import depth_option, width_option


class CouplingFlowSystem(FlowSystem):
    """Steps with a coupling each, at every scale of an image (survey 6.1.1, Fig. 8). Subclasses write `step`."""

    layers: int = depth_option(
        4, "steps with a coupling each, at each resolution of an image (on tables: in all)", tune=(2, 12)
    )
    hidden: int = width_option(48, "width of the coupling networks", tune=(16, 512))
    blocks: int = depth_option(1, "residual blocks of a coupling network", least=0, tune=(1, 4))

    def transform(self) -> Transform:
        """What a coupling does to the dimensions that it moves."""
        return Affine()

    @property
    def make_net(self) -> partial[Any]:
        """Makes the networks of the couplings."""
        return partial(Conditioner, hidden=self.hidden, blocks=self.blocks, condition=self.embedding.width)

    def body(self) -> Layer:
        """`steps` at every scale of an image, on other data once; by pixels where a side cannot be halved."""
        if self.space.kind != "image":
            return self.steps(self.space.shape)
        return multi_scale(self.space.shape, self.steps, odd=partial(self.steps, alternate=alternate_pixels))

    def steps(self, shape: Shape, alternate: Alternate = alternate_channels) -> Layer:
        """The steps of one scale, of `(B, *shape)`."""
        return Chain(*(part for layer in range(self.layers) for part in self.step(layer, shape, alternate)))

    def step(self, layer: int, shape: Shape, alternate: Alternate) -> list[Layer]:
        """A coupling, which `alternate` makes, and what surrounds it."""
        raise NotImplementedError(f"{type(self).__name__} writes neither step, steps nor body")

    def couple(self, layer: int, shape: Shape, alternate: Alternate) -> Layer:
        """The coupling of a step."""
        return alternate(layer, shape, self.transform(), self.make_net)
