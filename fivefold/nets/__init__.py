"""Architectures used by more than one system; no losses."""
