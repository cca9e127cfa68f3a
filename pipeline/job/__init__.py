"""What the output folder knows: `spec`, `sharding`, `ledger`, `run_marker`, `shard_replacement`, `preflight`."""
