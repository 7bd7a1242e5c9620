"""One exported model file: its metadata, its session, its scores."""
