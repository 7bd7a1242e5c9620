"""Exported model files: metadata, sessions, scores, large images in tiles."""
