"""`make smoke`: check on a throw-away stack what Glassbox assumes of AWS and no public source proves."""
