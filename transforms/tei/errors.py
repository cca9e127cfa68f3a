"""What ends a run at the endpoint. Every one of these is for a person to mend, and exit code 3."""

from __future__ import annotations


class EndpointError(Exception):
    """The endpoint cannot do this job; the message says why and what to mend. Never holds a token or a text."""


class EndpointRefused(EndpointError):
    """The endpoint answers, but will not do this: wrong token, path or kind of model, paused, unknown prompt."""


class EndpointUnreachable(EndpointError):
    """No request has succeeded for as long as `--give_up_after` allows."""


class ModelChanged(EndpointError):
    """The endpoint's vectors are of another space than the job's."""


class PairingBroken(EndpointError):
    """The canary did not come back with its vector in its place: no vector of this endpoint can be trusted."""


class NotTei(EndpointRefused):
    """Something else than TEI answers: at the first handshake a mistake, later perhaps a gateway's page."""
