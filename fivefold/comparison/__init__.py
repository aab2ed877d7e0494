"""Measuring many systems the same way."""
