"""The demo: drawn traffic signs, an attack on the model, and the incident that it causes on the embedded AWS."""
