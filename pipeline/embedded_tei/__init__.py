"""A server that speaks TEI's protocol on the loopback interface.

From the wire inwards: `server` (socket, signals, command line), `app` (routes), `wire` and `refusals` (bodies),
`engine` (one request's way), `device` (permits, one queue, one batch at a time), `models`. `process` starts the
server as a child.
"""
