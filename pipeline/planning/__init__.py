"""What a run would take: `sampling`, `tokenize`, `throughput`, `estimate`."""
