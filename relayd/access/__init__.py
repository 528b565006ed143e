"""Who may send: networks, users, passwords, senders."""
