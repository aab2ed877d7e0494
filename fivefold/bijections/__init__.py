"""The parts of flows: invertible maps with their log-determinants."""
