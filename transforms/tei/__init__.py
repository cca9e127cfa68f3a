"""The endpoint's client, from the wire up. No Beam import.

Told: `settings`, `tokens`, `errors`. On the wire: `http`, `line`, `incoming`, `wire`, `vectors`, `info`, `grammar`,
`advice`.
Kept in bounds: `budget`, `health`, `jitter`, `patience`, `batching`.
At work: `work`, `dispatcher`, `contact`, `verifier`, `remedies`, `sender`, `pool`, `statistics`, `client`.
"""
