"""How a job goes: `schema`, `timeline`, `report`, `status`, `numbers`, `examples`, `charts`, `page`, `prometheus`."""
