"""Models of anomalib behind the contract of a detector."""
