"""What other people's servers need to run a model file of this package."""
