"""What `verify` checks: `shards`, their `rows`, `vectors`, `sampling`; `findings` and `parallel` for all of them."""
