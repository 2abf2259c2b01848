"""The flows: thin, one file each."""
