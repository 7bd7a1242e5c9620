"""The serving island over HTTP: the Open Inference Protocol v2, plain scoring of images, and metrics; without torch."""
