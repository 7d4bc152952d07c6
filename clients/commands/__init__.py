"""Commands that ask a server for pictures."""
