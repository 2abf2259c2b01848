"""Sees the pictures that a person should look at: measures, verdicts, near-duplicates, placeholders."""
