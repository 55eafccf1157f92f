"""PostgreSQL as the store of several machines: its connections, its notifications, and its schema."""
