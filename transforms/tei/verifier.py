"""Which model an endpoint serves, asked again whenever there is reason to, and the wire format that it takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from transforms.tei.error_table import Verdict
from transforms.tei.formats import Wire, WireFormat, embed_json, what_differs
from transforms.tei.handshake import (
    ROUTE_TRIES,
    Acquaintance,
    Contact,
    RouteMissing,
    Unavailable,
    is_servers_failure,
)
from transforms.tei.info import ServerInfo
from transforms.tei.scheduler import Dispatcher, Endpoint
from transforms.tei.settings import EndpointSettings

logger = logging.getLogger(__name__)


class Verifier:
    """Holds endpoints to the model that was met first. Shared by all threads.

    Attributes:
        met: what the first contact told.
        wire: the format to use; JSON from the moment on that an endpoint turns out not to take the other one.
    """

    def __init__(self, settings: EndpointSettings, contact: Contact, met: Acquaintance, dispatcher: Dispatcher) -> None:
        self.met = met
        self.wire: Wire = met.wire
        self._settings = settings
        self._contact = contact
        self._dispatcher = dispatcher
        self._route_failures = 0

    def make_sure_of(self, endpoint: Endpoint) -> None:
        """Checks the model once after each failure of the endpoint, while other threads wait; raises as `verify`."""
        if not endpoint.verified:
            self._check_once(endpoint, lambda: endpoint.verified)

    def confirm(self, endpoint: Endpoint, since: float) -> None:
        """Checks the model unless that was done since a connection was made anew; raises as `verify`."""
        if endpoint.verified_at < since:
            self._check_once(endpoint, lambda: endpoint.verified_at >= since)

    def verify(self, endpoint: Endpoint) -> None:
        """Checks the model now.

        Raises:
            Unavailable: it cannot be asked for now.
            EndpointError: the run must stop.
        """
        generation, began = self._dispatcher.generation(endpoint), time.monotonic()
        info = self._checked(endpoint.url)
        if (reason := what_differs(self._settings, info)) is not None:
            self.fall_back(endpoint.url, reason)
        self._dispatcher.verified(endpoint, info, generation)
        endpoint.verified_at = began

    def _check_once(self, endpoint: Endpoint, needless: Callable[[], bool]) -> None:
        """Who waited while another thread's check failed takes that for an answer: the next would wait as long."""
        failed = endpoint.failed_checks
        with endpoint.checking:
            if needless():
                return
            if endpoint.failed_checks != failed and endpoint.last_failure is not None:
                raise Unavailable(endpoint.last_failure)
            try:
                self.verify(endpoint)
            except Unavailable as error:
                endpoint.last_failure = error.verdict
                endpoint.failed_checks += 1
                raise

    def _checked(self, url: str) -> ServerInfo:
        try:
            info = self._contact.check(url, self.wire, self.met)
        except RouteMissing:
            self.fall_back(url)
        except Unavailable as error:
            if not self._blames_route(error.verdict):
                raise
            # Where this fails too, it is not the route.
            self._contact.check(url, embed_json(self._settings), self.met)
            self.fall_back(url)
        else:
            self._route_failures = 0
            return info
        return self._contact.check(url, self.wire, self.met)

    def _blames_route(self, verdict: Verdict) -> bool:
        if self.wire.format is not WireFormat.OPENAI_BASE64:
            return False
        self._route_failures += is_servers_failure(verdict)
        return verdict.status == 200 or self._route_failures >= ROUTE_TRIES

    def fall_back(self, url: str, reason: str = "it does not take it") -> None:
        """Goes on with the format that every server takes, and in which every request says what it wants."""
        if self.wire.format is WireFormat.OPENAI_BASE64:
            logger.warning("%s cannot be asked by %s (%s): going on with /embed", url, self.wire.path, reason)
            self.wire = embed_json(self._settings)
