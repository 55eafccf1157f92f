"""Interfaces with more than one implementation or reader: event logs, the OpenAPI description."""
