"""Transformer: attention over everything that came before."""

from __future__ import annotations

from typing import Any, ClassVar

from fivefold.autoregressive._transformer import TransformerSystem
from fivefold.nets.attention import Attending, CausalBlock, refuse_dense


class Transformer(TransformerSystem):
    """Transformer (survey 5.1.4, Eq. 27; Vaswani et al., 2017).

    A decoder of pre-norm blocks over pixels (each colour a position), characters, audio samples or columns.
    The input at a position is the value before it and what is to be predicted there: learned embeddings, for
    images of row, column and colour.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {"precision": "auto", "ema": 0.995},
        "small": {"width": 32, "layers": 2, "heads": 2},  # short sequences, as the codes of another system
    }

    width = 128

    def make_blocks(self) -> list[CausalBlock]:
        dense = [Attending(self.space.dims, self.space.dims, self.heads)] * self.layers
        refuse_dense("Transformer", dense, "smaller images (--size), shorter examples, or sparse-transformer")
        return [CausalBlock(self.width, self.heads, self.dropout) for _ in range(self.layers)]
