"""HTTP in and out, and nothing else: each handler reads a request, asks the parts, writes the answer."""
