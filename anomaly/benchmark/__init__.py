"""Benchmarks: cells measured one by one, leak checks on their images, and a table beside published figures."""
