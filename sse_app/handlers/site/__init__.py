"""The handlers of the pages, and of health, readiness, metrics and the public status."""
