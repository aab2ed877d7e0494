"""Variational autoencoders (survey 3)."""
