"""Capture file -> counts -> checks -> violation."""
