"""What the output folder knows, and what the inputs are.

Inputs: `input_selection`, `file_kinds`, `sharding`. The folder: `spec`, `ledger`, `run_marker`, `doubt`,
`former_vectors`, `shard_replacement`. Before a run: `preflight`, `preparation`.
"""
