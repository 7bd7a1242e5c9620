"""Images in, result rows out; without torch."""
