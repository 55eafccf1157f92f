"""What the commands do, a module a topic; `sse_app.cli` says which."""
