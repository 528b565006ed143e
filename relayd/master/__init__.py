"""The lean master: binds, forks, watches, reloads."""
