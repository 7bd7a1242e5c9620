"""Measurements: each file is a command that writes one JSON into `results/`."""
