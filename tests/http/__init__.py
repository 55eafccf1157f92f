"""The API over HTTP, asked of a server."""
