"""A Unix-socket request channel, ignorant of what it carries."""
