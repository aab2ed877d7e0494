"""The parts of flows: invertible, surjective and stochastic maps with what they add to the log-likelihood."""
