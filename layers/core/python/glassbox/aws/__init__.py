"""One small adapter per AWS service. Adapters take their client and hold no decisions."""
