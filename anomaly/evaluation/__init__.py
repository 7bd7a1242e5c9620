"""Figures of a model on labelled images, and the smallest defects that it detects."""
