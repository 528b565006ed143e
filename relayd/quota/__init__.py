"""What Exchange allows, as a plan: slots for each mailbox."""
