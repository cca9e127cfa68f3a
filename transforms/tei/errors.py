"""What ends a run at the endpoint. Each one needs a person to fix it, and leads to exit code 3."""

from __future__ import annotations


class EndpointError(Exception):
    """The endpoint cannot do this job; the message gives the reason and the remedy. Never holds a token or a text."""


class EndpointRefused(EndpointError):
    """The endpoint answers, but will not do this: wrong token, path or kind of model, paused, unknown prompt."""


class EndpointUnreachable(EndpointError):
    """No request has succeeded for as long as `--give_up_after` allows."""


class ModelChanged(EndpointError):
    """The endpoint's vectors are of another space than the job's."""


class PairingBroken(EndpointError):
    """The canary did not come back with its vector in its place: no vector of this endpoint can be trusted."""


class VectorsDoubtful(EndpointError):
    """Replies that passed as right may have held wrong vectors: all that came from this endpoint lately is in doubt."""


class NotTei(EndpointRefused):
    """Something other than TEI answers: at the first handshake a mistake, later perhaps a gateway's page."""
