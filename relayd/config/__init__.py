"""Configuration: TOML in, one frozen value out, all problems at once."""
