"""Space: what one example is, and all that was fitted on the training split to encode it."""

from fivefold.space.column import Column, LeftOut
from fivefold.space.space import AUDIO_OFFSET, Batch, Space, label_space
from fivefold.space.vocabulary import Vocabulary

__all__ = ["AUDIO_OFFSET", "Batch", "Column", "LeftOut", "Space", "Vocabulary", "label_space"]
