"""Transformer: attention over everything that came before."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.autoregressive._transformer import TransformerSystem
from fivefold.nets.attention import Attending, CausalBlock, refuse_dense
from fivefold.nets.heads import Likelihood
from fivefold.space import Space
from fivefold.system import Density


class Transformer(TransformerSystem):
    """Transformer (survey 5.1.4, Eq. 27; Vaswani et al., 2017).

    A decoder of pre-norm blocks over pixels (each colour a position), characters, audio samples or columns.
    The input at a position is the value before it and what is to be predicted there: learned embeddings, for
    images of row, column and colour.

    Args:
        space: what the examples are.
        width: of the features.
        layers: decoder blocks.
        heads: of the attention.
        dropout: share of each branch's outputs that is dropped in training.
        mixtures: components where an output is a mixture of logistics.
        likelihood: distribution of each dimension: auto | categorical | logistic-mixture | gaussian.
    """

    densities: ClassVar[dict[str, Density]] = {
        "image": Density.EXACT,
        "table": Density.EXACT,
        "text": Density.EXACT,
        "audio": Density.EXACT,
    }
    free_form: ClassVar[bool] = False
    sampling: ClassVar[str] = "autoregressive"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"lr": 3e-3, "batch_size": 32, "ema": 0.995, "clip": 100.0}
    }

    def __init__(
        self,
        space: Space,
        *,
        width: int = 64,
        layers: int = 4,
        heads: int = 4,
        dropout: float = 0.1,
        mixtures: int = 8,
        likelihood: Likelihood = "auto",
    ) -> None:
        dense = [Attending(space.dims, space.dims, heads)] * layers
        refuse_dense("Transformer", dense, "smaller images (--size), shorter examples, or sparse-transformer")
        blocks = [CausalBlock(width, heads, dropout) for _ in range(layers)]
        super().__init__(space, mixtures, likelihood, blocks, width, dropout)
