"""The event log: where published events are kept, numbered and read back; the one seam for scale."""
