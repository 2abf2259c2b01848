"""Finds pictures that a person should look at: measures, verdicts, near-duplicates, placeholders."""
