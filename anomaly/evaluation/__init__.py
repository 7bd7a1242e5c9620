"""Figures on labelled images, and the size of defect that a model detects."""
