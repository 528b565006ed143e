"""Measurements, side by side in one run: relayd, Postfix, aiosmtpd, a bare loop.

`make bench` runs `python -m bench`. Nothing here is a test: machines are noisy, so what is
printed are ratios of things run in turn, and the figures they come from.
"""
