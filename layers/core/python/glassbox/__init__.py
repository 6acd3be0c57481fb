"""Glassbox: detects drift and attacks on an image classifier, and explains the flagged predictions.

This package is the core. Only :mod:`glassbox.aws` imports boto3. No module reads the clock, the environment or the
network at import.
"""
