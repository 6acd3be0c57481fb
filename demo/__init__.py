"""The demo: drawn signs, the attack, and the story on the embedded AWS."""
