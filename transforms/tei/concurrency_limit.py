"""How many texts may be in flight on one endpoint, so that it is always busy and its queue is short. Pure."""

from __future__ import annotations

import math

QUEUE_TARGET = 1.5  # of a device batch or a request, whichever is more: texts that wait while the device works
NO_QUEUE = 0.25  # of the target: with fewer texts waiting, the device is idle now and then
UNEVEN = 0.1  # of what is in flight on a long way, as replies and requests come in bursts
GAIN = 0.5  # of the way to the limit that the last round trip asks for
DECREASE = 0.7
ROUND_TRIPS_TO_CEILING = 64
MIN_SHARED_REQUEST = 8  # texts; a gateway that counts requests would refuse ever smaller ones, too
REQUESTS_BELOW_SHARE = 4  # in flight at least, so that a refusal takes away more than one of them
WINDOW_SECONDS = 10.0  # for which the shortest round trip is believed
WINDOW_ROUND_TRIPS = 30
TIMEOUT_ROUND_TRIPS = 4.0
MAX_TIMEOUT = 3600.0  # seconds


class ConcurrencyLimit:
    """Texts in flight on one endpoint, bounded by a limit that follows its replies. Its owner locks.

    The law is Little's: of the L texts in flight during a round trip of R seconds, L * Q / R wait in the endpoint's
    queue if each waits there for Q seconds. The limit aims at L minus those that wait, which is what the device and the
    way take, plus one request or one device batch: then the next batch is always there, and not much more. TEI reports
    Q and the device's time with each reply. Without them, Q is what a round trip takes longer than the shortest one
    seen, as in TCP Vegas and in the gradient limits of Netflix's concurrency-limits; because that one goes stale, the
    limit drains the queue for a moment every now and then, as TCP BBR does.

    Clients that share a server need not know of each other: each keeps the same number of texts waiting, which gives
    them equal limits. A refusal (429) lowers a ceiling by a factor that rises by the same step for all of them.

    Args:
        permits: texts that the server takes at once.
        batch_texts: texts that one request may hold.
        share: this client's part of the permits where several are known to share them; None for all.
        timeout: seconds that one request may take, as configured.
        seconds_per_text: of a text alone, from the handshake; 0 for unknown.

    Attributes:
        in_flight: texts of requests under way.
        timeout: seconds that one request may take now; longer than configured where requests honestly take long.
    """

    def __init__(
        self,
        permits: int,
        batch_texts: int,
        share: int | None = None,
        timeout: float = 60.0,
        seconds_per_text: float = 0.0,
    ) -> None:
        self.permits = permits
        self.share = permits if share is None else min(share, permits)
        self.in_flight = 0
        self._configured_timeout = timeout
        self._batch_texts = batch_texts
        self._seconds_per_text = seconds_per_text
        self._ceiling = float(self.share)
        self._reduced_at = float("-inf")
        self._wanted = 2.0 * self.request_texts
        self.timeout = max(timeout, TIMEOUT_ROUND_TRIPS * self._wanted * seconds_per_text)
        self._queue_target = QUEUE_TARGET * self.request_texts
        self._min_seconds = self._next_min_seconds = float("inf")
        self._window_ends = float("-inf")
        self.drains_until = float("-inf")

    @property
    def request_texts(self) -> int:
        """Texts that one request may hold now; at least 1.

        As many as the server takes, unless they would take more than half of the timeout. A client that was refused
        has smaller ones: a limit of a few requests would be used by halves or thirds.
        """
        texts = self._batch_texts
        if self._seconds_per_text > 0:
            texts = min(texts, max(2, int(self._configured_timeout / 2 / self._seconds_per_text)))
        if self._ceiling < self.share or self.share < self.permits:
            texts = min(texts, max(MIN_SHARED_REQUEST, int(self._ceiling) // REQUESTS_BELOW_SHARE))
        return max(1, min(texts, int(self._ceiling)))

    @property
    def limit(self) -> int:
        """Texts that may be in flight; room for one request at least."""
        texts = self.request_texts
        return max(texts, int(min(max(self._wanted, 2 * texts), self._ceiling)))

    def fits(self, texts: int, now: float = 0.0) -> bool:
        """Return whether a request of so many texts may go out now.

        Only whole requests are sent, so half of one must be within the limit; all of it within what the server takes.
        """
        limit = self.limit
        if now < self.drains_until:
            limit = max(self.request_texts, int(limit - self._queue_target))
        if self.in_flight == 0:
            return True
        return self.in_flight + texts / 2 <= limit and self.in_flight + texts <= self._ceiling

    def acquire(self, texts: int) -> int:
        """Count a request that goes out; return how many texts are in flight with it."""
        self.in_flight += texts
        return self.in_flight

    def release(self, texts: int) -> None:
        """Count a request that has ended, however it did."""
        self.in_flight -= texts

    def replied(
        self, texts: int, in_flight: int, seconds: float, queue_seconds: float, device_seconds: float, now: float
    ) -> None:
        """Learn from a good reply.

        Args:
            texts: of the request.
            in_flight: texts that were in flight when it was sent, its own included.
            seconds: of the round trip.
            queue_seconds: that its texts waited in the server's queue on average; 0 where that is unknown.
            device_seconds: that the device took; 0 where that is unknown.
            now: the time.
        """
        texts, in_flight = max(1, texts), max(texts, in_flight)
        weight = min(1.0, texts / in_flight)
        if not queue_seconds and not device_seconds:
            queue_seconds = max(0.0, seconds - self._shortest(texts, seconds, now))
        waiting = in_flight * min(1.0, queue_seconds / seconds) if seconds > 0 else 0.0
        on_device = in_flight * min(1.0, device_seconds / seconds) if seconds > 0 else 0.0
        self._queue_target = max(QUEUE_TARGET * max(on_device, self.request_texts), UNEVEN * in_flight)
        wanted = in_flight - waiting + self._queue_target
        if waiting < NO_QUEUE * self._queue_target:
            wanted = max(wanted, 2.0 * in_flight)
        # The limit may have doubled since the request was sent; still less was sent for want of texts.
        if in_flight < self._wanted / 2 - 2 * self.request_texts:
            wanted = min(wanted, self._wanted)  # there was less to send than was allowed: that shows no room for more
        self._wanted += GAIN * weight * (wanted - self._wanted)
        self._wanted = min(self._wanted, float(self.permits))
        step = max(1.0, self.permits / ROUND_TRIPS_TO_CEILING)
        self._ceiling = min(float(self.permits), self._ceiling + step * texts / self._ceiling)
        per_text = seconds / in_flight
        self._seconds_per_text += max(weight, 0.1) * (per_text - self._seconds_per_text)
        self.timeout = min(MAX_TIMEOUT, max(self._configured_timeout, TIMEOUT_ROUND_TRIPS * seconds))

    def refused(self, sent_at: float, now: float) -> bool:
        """Lower the ceiling after a 429, once for all requests that were under way together; return whether it did.

        Call it before `release`. What counts is what was in flight, where that was less than the ceiling; but a client
        with little to send learns little from a refusal, so not much less.
        """
        if sent_at < self._reduced_at:
            return False
        self._reduced_at = now
        limit = min(self._ceiling, self.limit)
        used = min(limit, max(self.in_flight, limit / 2))
        self._ceiling = float(self.share) if self.in_flight > self.share else max(1.0, used * DECREASE)
        return True

    def timed_out(self, sent_at: float, now: float) -> bool:
        """Halve what is in flight and double the timeout, once for all requests that were under way together."""
        if sent_at < self._reduced_at:
            return False
        self._reduced_at = now
        self._wanted = max(1.0, min(self._wanted, self.in_flight) / 2)
        # By Little's law again: so many texts take longer than this.
        self._seconds_per_text = max(self._seconds_per_text, self.timeout / max(1, self.in_flight))
        self.timeout = min(MAX_TIMEOUT, 2 * self.timeout)
        return True

    def resize(self, permits: int, batch_texts: int, share: int | None = None) -> None:
        """Take what the server permits from now on."""
        self.permits = permits
        self.share = permits if share is None else min(share, permits)
        self._batch_texts = batch_texts
        self._ceiling = min(self._ceiling, float(permits))

    def _shortest(self, texts: int, seconds: float, now: float) -> float:
        """Return the shortest round trip of a full request lately; let the queue drain when the last one grows old."""
        if texts >= math.ceil(0.75 * self.request_texts):
            self._min_seconds = min(self._min_seconds, seconds)
            self._next_min_seconds = min(self._next_min_seconds, seconds)
        if now >= self._window_ends:
            self._min_seconds, self._next_min_seconds = self._next_min_seconds, float("inf")
            self._window_ends = now + max(WINDOW_SECONDS, WINDOW_ROUND_TRIPS * seconds)
            self.drains_until = now + seconds
        return min(self._min_seconds, self._next_min_seconds, seconds)
