"""Models over HTTP: the Open Inference Protocol v2, scoring of single images, metrics and two web pages; without torch."""
