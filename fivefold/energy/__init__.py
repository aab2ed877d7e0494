"""Energy-based systems (survey 2)."""
