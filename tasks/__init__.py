"""The verbs of a run, and the engine that a shard runs on."""
