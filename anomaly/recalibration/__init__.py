"""A new threshold for an exported model from new good images or from labels."""
