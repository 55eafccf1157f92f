"""The Python client, and clients that others wrote."""
