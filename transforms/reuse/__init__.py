"""Vectors of former outputs, used again: `keys` of texts, `index`, `reuse`, and `partial` shards."""
