"""Training and calibration: from good images to a fitted model on disk."""
