"""What the operator sees: logs and counters."""
