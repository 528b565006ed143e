"""Who we are at Microsoft: credentials and access tokens."""
