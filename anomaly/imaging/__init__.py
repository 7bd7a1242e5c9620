"""Stored images to uint8 RGB arrays and back: headers, overlays, regions, map PNGs, image statistics."""
