"""Passes over an exported graph: fixed shapes, half precision, 8-bit integers."""
