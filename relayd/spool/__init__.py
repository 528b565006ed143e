"""The spool: the only place where accepting and delivering meet."""
