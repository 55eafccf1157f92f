"""The event log: its interface (`base`), and implementations on SQLite and in memory."""
