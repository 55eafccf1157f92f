"""The state directory, and the SQLite files in it."""
