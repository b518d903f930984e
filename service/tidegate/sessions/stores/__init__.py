"""Where durable sessions are kept: one protocol (`store`), three stores (memory, sqlite, redis)."""
