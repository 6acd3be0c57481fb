"""Random input for every reader: ``make fuzz``."""
