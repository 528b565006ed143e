"""The way out, looked at step by step as a person would, for `relayd doctor`."""
