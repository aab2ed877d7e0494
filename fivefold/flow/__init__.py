"""Normalizing flows (survey 6)."""
