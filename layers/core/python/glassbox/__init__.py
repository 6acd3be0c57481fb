"""Glassbox: watches an image classifier, reacts when it goes wrong, and shows why.

The core. Nothing outside :mod:`glassbox.aws` knows boto3, and nothing here reads the clock, the environment
or the network at import.
"""
