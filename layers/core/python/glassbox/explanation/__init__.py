"""Trace of a request -> heat map with its completeness error."""
