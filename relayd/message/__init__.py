"""Messages as pure values: addresses, envelopes, header edits."""
