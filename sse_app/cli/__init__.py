"""The ``sse-app`` command: its parser, and a file for each command."""
