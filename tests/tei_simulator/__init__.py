"""A TEI server over a hash in the model's place, with a device of known speed, faults on demand, and counts.

`python -m tests.tei_simulator --help` lists the options; `process.TeiSimulator` starts it as a child;
`clients.Simulator` speaks to its control routes, `/simulator/faults`, `/simulator/statistics` and `/simulator/crash`;
`hash_model.expected_vector` returns the vector that a text must have. `app` is the server, `device` the simulated
device, `connection` the connections that it breaks, `faults` what can go wrong, `statistics` what is counted.
"""
