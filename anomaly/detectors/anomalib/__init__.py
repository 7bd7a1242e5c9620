"""Models of anomalib as detectors."""
