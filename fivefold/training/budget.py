"""How long to train: `60s`, `5000steps` or `20epochs`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fivefold.errors import OptionError

_UNITS = {
    "s": ("seconds", 1.0), "sec": ("seconds", 1.0), "seconds": ("seconds", 1.0), "second": ("seconds", 1.0),
    "m": ("seconds", 60.0), "min": ("seconds", 60.0), "h": ("seconds", 3600.0),
    "step": ("steps", 1.0), "steps": ("steps", 1.0), "epoch": ("epochs", 1.0), "epochs": ("epochs", 1.0),
}  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """An amount of training; `unit` is "seconds", "steps" or "epochs"."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From words such as `60s`, `10m`, `2h`, `5000steps`, `20epochs`; OptionError says what was expected."""
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)\s*", str(text))
        if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
            raise OptionError(f"budget {text!r}: expected a time, steps or epochs, as 60s, 10m, 5000steps or 20epochs")
        unit, factor = _UNITS[match[2]]
        return cls(float(match[1]) * factor, unit)

    def progress(self, *, seconds: float, steps: int, epochs: float) -> float:
        """From 0 to 1 over the budget."""
        spent = {"seconds": seconds, "steps": float(steps), "epochs": epochs}[self.unit]
        return min(spent / self.amount, 1.0)

    def __str__(self) -> str:
        return f"{self.amount:g}{'s' if self.unit == 'seconds' else self.unit}"
