"""Measuring a system: one row of the table."""
