"""Benchmarks: cells measured one by one, leaks looked for in their images, and one table beside published figures."""
