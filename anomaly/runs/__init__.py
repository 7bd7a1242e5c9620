"""Run directories: rows, labels, review, merge and replay."""
