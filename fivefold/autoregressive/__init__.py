"""Autoregressive systems (survey 5)."""
