"""The open streams: admission, the hub and its fan-out, keepalive, replay, publishing."""
