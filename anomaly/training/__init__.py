"""From good images to a calibrated detector on disk."""
