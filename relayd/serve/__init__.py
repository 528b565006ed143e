"""The way in: listener, session, desk."""
