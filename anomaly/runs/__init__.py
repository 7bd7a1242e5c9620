"""Runs: scoring many images with commits, labels, review, replay, comparison and merging."""
