"""How long a test waits for what must come; what never comes fails, and a busy machine is given its time."""

PATIENCE_S = 300
