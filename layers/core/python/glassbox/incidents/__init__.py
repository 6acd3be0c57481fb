"""Violation -> incident -> swap, replay, restore, report."""
