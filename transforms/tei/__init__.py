"""The endpoint's client. No Beam import.

Configured by `settings`, `credentials`; fails with `errors`.
On the wire: `transport`, `formats`, `error_table`.
What an endpoint is and takes: `vector_space`, `handshake`, `concurrency_limit`, `endpoint`.
At work: `tasks`, `scheduler`, `exchange`, `client`, `sharing`.
"""
