"""What a run would take: `sampling`, `throughput`, `estimate`."""
