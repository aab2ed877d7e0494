"""RAD: piecewise invertible flows with real and discrete latent variables."""

from __future__ import annotations

from functools import partial

from fivefold.bijections.base import Bijection, Chain, Layer
from fivefold.bijections.coupling import Alternate, alternate_channels, alternate_pixels
from fivefold.bijections.linear import ActNorm, LULinear
from fivefold.bijections.shape import multi_scale
from fivefold.bijections.surjections import Piecewise
from fivefold.bijections.transforms import Affine
from fivefold.flow._system import Dequantisation, FlowSystem
from fivefold.nets.conditioner import Conditioner
from fivefold.space import Space
from fivefold.system import Density

CONDITION_WIDTH = 32


class RAD(FlowSystem):
    """Real and discrete flow (survey 6.4; Dinh et al., 2019).

    Space is cut into regions, each taken onto all of noise by a bijection of its own; a gating network gives the chance
    of each region given the noise. An example lies in one region, so that its density is exact.

    After coupling layers come folds: every dimension's line is cut at learned knots and each piece is stretched over
    the whole line. The chances of the pieces are such that the density is continuous at the knots.

    Args:
        space: of the examples.
        layers: coupling layers before the folds (at each resolution of an image).
        folds: how many, each followed by two coupling layers.
        pieces: of every dimension in a fold.
        hidden: width of the coupling and gating networks.
        blocks: their residual blocks.
        margin: how far the logit of discrete images keeps from 0 and 1; 0 for no logit.
        score_samples: points in each cell when discrete examples are scored.
        temperature: the standard deviation of the noise that samples are made from.
        dequantisation: of discrete dimensions, uniform or variational (by a flow given the example).
    """

    densities = {"image": Density.LOWER_BOUND, "table": Density.EXACT}
    free_form = False
    sampling = "direct"
    presets = {"default": {"ema": 0.99, "clip": 5.0}}

    def __init__(
        self,
        space: Space,
        *,
        layers: int = 4,
        folds: int = 1,
        pieces: int = 2,
        hidden: int = 64,
        blocks: int = 1,
        margin: float = 0.05,
        score_samples: int = 16,
        temperature: float = 1.0,
        dequantisation: Dequantisation = "uniform",
    ) -> None:
        if pieces < 2:
            raise ValueError(f"a fold needs at least 2 pieces, got {pieces}")
        super().__init__(space, CONDITION_WIDTH, score_samples, temperature, dequantisation)
        self.layers, self.pieces, self.transform = layers, pieces, Affine()
        self.make_net = partial(Conditioner, hidden=hidden, blocks=blocks, condition=self.embedding.width)
        by_pixels = partial(self._couplings, alternate=alternate_pixels)
        image = space.kind == "image"
        body = multi_scale(space.shape, self._couplings, odd=by_pixels) if image else self._couplings(space.shape)
        self.flow = self._onto_line(Chain(body, *[self._fold(space.dims) for _ in range(folds)]), margin)

    def _couplings(self, shape: tuple[int, ...], alternate: Alternate = alternate_channels) -> Bijection:
        parts: list[Bijection] = []
        for layer in range(self.layers):
            parts += [ActNorm(shape[0]), LULinear(shape[0]), alternate(layer, shape, self.transform, self.make_net)]
        return Chain(*parts)

    def _fold(self, dims: int) -> Layer:
        """The map of every piece onto the line, and couplings of what lies there upon one another."""
        gate = self.make_net(dims, self.pieces * dims)
        couplings = [alternate_channels(layer, (dims,), self.transform, self.make_net) for layer in range(2)]
        return Chain(ActNorm(dims), Piecewise(dims, self.pieces, gate), *couplings)
