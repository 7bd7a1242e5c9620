"""Stored image to uint8 RGB and back: headers, overlays, regions, map PNGs."""
