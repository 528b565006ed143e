"""The SMTP wire as pure values: octets in, events and replies out."""
