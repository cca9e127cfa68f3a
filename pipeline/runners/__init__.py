"""How Beam is started: `runner`, `parallelism`, `progress`, `smoke_test`, `endpoint`, `worker`."""
