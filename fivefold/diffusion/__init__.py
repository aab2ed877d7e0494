"""Diffusion systems (survey 2.3)."""
