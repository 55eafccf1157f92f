"""The HTTP handlers: each reads a request, asks the parts of the node, and writes the answer."""
