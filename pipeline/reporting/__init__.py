"""What a job came to: `report`, `timeline`, `charts`, `page`, `prometheus`, `examples`."""
