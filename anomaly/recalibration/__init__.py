"""A new threshold for an exported model, from good images or labels."""
