"""What runs where a command is called.

`__main__` calls `commands`, which use `job`, `planning`, `runners` (with the `graph` of transforms), `verification` and
`reporting`; `embedded_tei` is a server to try it with. `errors`, `escaping`, `logs` and `processors` are for all.
"""
