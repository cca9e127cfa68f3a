"""Which model an endpoint serves, asked again whenever there is reason to, and the wire format that it takes."""

from __future__ import annotations

import logging

from transforms.tei.contact import Acquaintance, Contact, RouteMissing
from transforms.tei.dispatcher import Dispatcher, Endpoint
from transforms.tei.settings import EndpointSettings
from transforms.tei.wire import Wire, WireFormat, embed_json, means_the_same

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

    def make_sure_of(self, endpoint: Endpoint) -> None:
        """Checks the model once after each failure of the endpoint, while other threads wait; raises as `verify`."""
        if endpoint.verified:
            return
        with endpoint.checking:
            if not endpoint.verified:
                self.verify(endpoint)

    def verify(self, endpoint: Endpoint) -> None:
        """Checks the model now.

        Raises:
            Unavailable: it cannot be asked for now.
            EndpointError: the run must stop.
        """
        generation = self._dispatcher.generation(endpoint)
        try:
            info = self._contact.check(endpoint.url, self.wire, self.met)
        except RouteMissing:
            self.fall_back(endpoint.url)
            info = self._contact.check(endpoint.url, self.wire, self.met)
        if not means_the_same(self._settings, info):
            self.fall_back(endpoint.url)
        self._dispatcher.verified(endpoint, info, generation)

    def fall_back(self, url: str) -> None:
        """Goes on with the format that every server takes."""
        if self.wire.format is WireFormat.OPENAI_BASE64:
            logger.warning("%s does not take %s under this job's settings: going on with /embed", url, self.wire.path)
            self.wire = embed_json(self._settings)
