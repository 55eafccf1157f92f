"""Who may do what: tokens and their keys, accounts, sessions, revocations."""
