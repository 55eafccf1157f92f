"""What must not be possible: forged tokens, hostile requests, what outlives a revocation."""
