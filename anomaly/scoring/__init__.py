"""The serving island: scoring images through the exported file, without torch."""
