"""The event log on PostgreSQL, which several machines share."""
