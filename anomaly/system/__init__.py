"""The process and its machine: files, hashes, run cards, processors, progress bars."""
