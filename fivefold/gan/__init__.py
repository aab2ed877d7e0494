"""Generative adversarial networks (survey 4)."""
