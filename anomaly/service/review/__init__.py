"""The web page for the review of a finished run."""
