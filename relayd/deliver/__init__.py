"""The way out: courier, transports, outcomes."""
