"""The files that a bundle for a machine without a network carries as they are: they run there before anything is installed."""
