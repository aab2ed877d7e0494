"""Fitting a system: the loop, its state, budget, batches and log."""
