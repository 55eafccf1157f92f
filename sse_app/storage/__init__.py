"""The state directory and the SQLite files in it: `ownership` looks whose they are before they are used."""
