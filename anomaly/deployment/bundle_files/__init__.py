"""Scripts of a bundle. They run on the target machine before anything is installed."""
