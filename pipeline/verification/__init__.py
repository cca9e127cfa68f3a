"""What `verify` checks: `shards`, `vectors`; `findings` and `parallel` for both."""
