"""The ``imagemill`` command: its options, what a terminal shows, and the demo."""
