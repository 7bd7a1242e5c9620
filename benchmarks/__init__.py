"""Measurements: each module is a command that writes one JSON file into `results/`."""
