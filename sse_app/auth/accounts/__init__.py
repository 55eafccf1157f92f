"""Accounts: passwords, login, sessions, throttling."""
