"""Files, hashes, run cards, processors, progress: what every room may use."""
