"""What `verify` checks: `shards`, `vectors`, `sampling`; `findings` and `parallel` for all of them."""
