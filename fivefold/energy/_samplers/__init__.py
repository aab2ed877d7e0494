"""Samplers that learn on one energy (survey 2.2); what each learns has no influence on where its chains tend to."""

from __future__ import annotations

from collections.abc import Callable

from fivefold.energy._samplers.a_nice_mc import fit_a_nice_mc
from fivefold.energy._samplers.entropy_mcmc import fit_entropy_mcmc
from fivefold.energy._samplers.neutra import fit_neutra
from fivefold.tools.adaptive import adaptive_langevin
from fivefold.tools.proposals import Learned

# How a sampler is learned from an energy `(B, ...) -> (B,)` and states where chains start; sizes by keyword.
LEARNERS: dict[str, Callable[..., Learned]] = {
    "neutra": fit_neutra,
    "a-nice-mc": fit_a_nice_mc,
    "entropy-mcmc": fit_entropy_mcmc,
    "adaptive-mcmc": adaptive_langevin,
}
