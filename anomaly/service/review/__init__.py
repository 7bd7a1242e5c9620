"""The page that reviews a finished run."""
