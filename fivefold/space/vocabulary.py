"""Vocabulary: what one symbol of text is where it is no character: a byte, or several that often stand together."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Self

import numpy as np

from fivefold.errors import DataError

BYTES = 256
PIECE = 2**16  # characters that are encoded at once
_HIGH = "".join(map(chr, range(128, BYTES)))  # bytes of characters beyond ASCII, which count as letters
_LETTERS, _SPACES = string.ascii_letters + _HIGH, r" \t\n\r\f\v"
_WORDS = f" ?[{_LETTERS}]+| ?[0-9]+| ?[^{_LETTERS}0-9{_SPACES}]+|[{_SPACES}]+"  # that no token reaches across


@dataclass(frozen=True)
class Vocabulary:
    """Text as its UTF-8 bytes (codes 0 to 255) and, where there are merges, as tokens of several bytes.

    Byte pairs are merged as Sennrich, Haddow and Birch (2016), https://arxiv.org/abs/1508.07909, do characters.
    Nothing is outside of it, and what is encoded decodes to itself.

    Args:
        merges: pairs of codes in the order of learning; each makes the next code, unless its bytes have one already.
    """

    merges: tuple[tuple[int, int], ...] = ()

    @cached_property
    def tokens(self) -> tuple[bytes, ...]:
        """The bytes of each code."""
        made = {bytes([byte]): None for byte in range(BYTES)}
        found = list(made)
        for first, second in self.merges:
            token = found[first] + found[second]
            if token not in made:
                made[token] = None
                found.append(token)
        return tuple(found)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def name(self) -> str:
        """What its symbols are called."""
        return "tokens" if self.merges else "bytes"

    @cached_property
    def characters(self) -> np.ndarray:
        """How many characters begin in each code, `(levels,)` int64: those of a text sum to its length."""
        return np.array([sum(byte & 0xC0 != 0x80 for byte in token) for token in self.tokens])

    def encode(self, text: str) -> np.ndarray:
        """Codes `(N,)` int64; raises DataError where the tokens need a library that is not installed."""
        if not self.merges:
            return np.frombuffer(text.encode(), np.uint8).astype(np.int64)
        tokenizer = _tokenizer(self)
        return np.array([code for piece in _pieces(text) for code in tokenizer.encode(piece).ids], np.int64)

    def decode(self, codes: Iterable[int]) -> str:
        """The text of codes; bytes that make no character, as at the ends of a window, become U+FFFD."""
        return self.joined(codes).decode("utf-8", "replace")

    def joined(self, codes: Iterable[int]) -> bytes:
        """The bytes of codes."""
        return b"".join(self.tokens[code] for code in codes)

    @classmethod
    def learn(cls, texts: Iterable[str], size: int) -> Self:
        """At most `size` tokens, learnt on texts; fewer where no two tokens stand together twice.

        Raises DataError where the library is not installed.
        """
        from json import loads

        library = _library()
        tokenizer = _splitting(library, library.models.BPE())
        alphabet = list(map(chr, range(BYTES)))
        trainer = library.trainers.BpeTrainer(
            vocab_size=size, min_frequency=2, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
        )
        tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
        codes, merges = {symbol: code for code, symbol in enumerate(alphabet)}, []
        for first, second in loads(tokenizer.to_str())["model"]["merges"]:
            merges.append((codes[first], codes[second]))
            codes.setdefault(first + second, len(codes))
        return cls(tuple(merges))

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        return cls(tuple((first, second) for first, second in record["merges"]))


def _pieces(text: str) -> Iterator[str]:
    """The bytes of a text as characters of the same numbers, which is what the library is given, piece by piece."""
    for start in range(0, len(text), PIECE):
        yield text[start : start + PIECE].encode().decode("latin-1")


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise DataError("byte pairs (bpe) need the library 'tokenizers': pip install 'fivefold[bpe]'") from error
    return tokenizers


def _splitting(library: Any, model: Any) -> Any:
    """A tokenizer that merges within words."""
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(_WORDS), "isolated")
    return tokenizer


@lru_cache(maxsize=8)
def _tokenizer(vocabulary: Vocabulary) -> Any:
    library = _library()
    words = [token.decode("latin-1") for token in vocabulary.tokens]
    merges = [(words[first], words[second]) for first, second in vocabulary.merges]
    return _splitting(library, library.models.BPE({word: code for code, word in enumerate(words)}, merges))
