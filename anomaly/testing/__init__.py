"""Public checks that a detector keeps the contract."""
