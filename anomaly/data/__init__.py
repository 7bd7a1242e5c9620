"""Images on disk: folders, splits, duplicates, inspection, and synthetic parts with exact masks."""
