"""One run in one process: its folder, its open resources, its recovery after a crash, its summary."""
