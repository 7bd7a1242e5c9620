"""Deployment: Triton model repositories, and bundles for machines without a network."""
