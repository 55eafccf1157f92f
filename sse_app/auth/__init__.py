"""Who may do what: tokens and their keys, grants, accounts, login."""
