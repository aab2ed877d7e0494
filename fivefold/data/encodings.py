"""What encoding bytes of text are in."""

from __future__ import annotations

import codecs

LOOKED_AT = 2**20  # bytes from which it is told where they are not UTF-8
MARKS = {  # of the order of bytes, longest first
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip


def encoding_of(raw: bytes) -> str:
    """By the mark of the order of bytes, as UTF-16 by its zeros, as UTF-8 where it is, else by a detector."""
    for mark, name in MARKS.items():
        if raw.startswith(mark):
            return name
    head = raw[:LOOKED_AT]
    if 0 < len(head) / 10 <= head.count(0):
        return "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
    try:
        raw.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes

        best = from_bytes(head).best()
        return "latin-1" if best is None else str(best.encoding)
