"""A Microsoft 365 on localhost, to try devices and the relay against."""
