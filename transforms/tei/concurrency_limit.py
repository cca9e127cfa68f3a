"""How many texts may be in flight on one endpoint, so that it is always busy and its queue is short. Pure."""

from __future__ import annotations

import math

QUEUE_TARGET = 1.5  # of a device batch or a request, whichever is more: texts that wait while the device works
QUEUE_TARGET_UNREPORTED = 1.25  # of a request: the shortest round trip has a whole request's time on the device in it
NO_QUEUE = 0.25  # of the target: with fewer texts waiting, the device is idle now and then
UNEVEN = 0.1  # of what is in flight on a long way, as replies and requests come in bursts
CROWD = 4.0  # times the share of a round trip that is no waiting; below 1 only where others' texts wait, too
GAIN = 0.5  # of the way to the limit that the last round trip asks for
MIN_REPORTED_SECONDS = 0.01  # of queue and device; servers cut times to whole milliseconds, of which few say little
SECOND_REQUEST = 0.75  # a limit of at least 1.25 requests is used by two smaller ones
DECREASE = 0.8  # of what was in flight, after a refusal; half of it makes the shares of sixteen workers uneven
FIRST_INCREASE = 1 / 64  # of the permits for each round trip, before anything was refused
INCREASE = 1 / 2048  # of the permits for the first round trip after a refusal
ACCELERATION = 1.01  # of the increase with each round trip without a refusal
WINDOW_SECONDS = 5.0  # the shortest round trip is that of the last two windows
WINDOW_ROUND_TRIPS = 5  # at least, so that a window of a slow endpoint has several
TIMEOUT_ROUND_TRIPS = 4.0  # a queue may grow, and a device slow down, before an honest reply counts as lost
FULL_ENOUGH = 0.75  # of a full request: a much smaller one comes back sooner, which says nothing of a full one
MAX_TIMEOUT = 3600.0  # seconds


class ConcurrencyLimit:
    """Texts in flight on one endpoint, bounded by a limit that follows its replies. Its owner locks.

    The law is Little's: of the L texts that are in flight on average during a round trip of R seconds, L * Q / R wait
    in the endpoint's queue if each waits there for Q seconds. The limit aims at L minus those that wait, which is what
    the device and the way take, plus about one request or one device batch: then the next batch is always there, and
    not much more. TEI reports Q and the device's time with each reply, cut to whole milliseconds.

    Where they are missing, or too short to mean anything, Q is what a round trip takes longer than the shortest one
    seen lately, as in TCP Vegas and in the gradient limits of Netflix's concurrency-limits; because that one goes
    stale, the limit drains the queue for a moment every now and then, as TCP BBR does.

    Clients that share a server need not know of each other. Each keeps the same number of texts waiting, which gives
    them equal limits. If the reported queue is so long that this client's own requests cannot be the reason, the others
    keep the device busy meanwhile, and all of them make do with less than two requests, by the same share. A refusal
    (429) lowers a ceiling by a factor, and it rises by a step that is the same for all and small at first: that is
    additive increase and multiplicative decrease, as in TCP, with long pauses between two refusals, as in CUBIC.
    Without the reported times, refusals are all that a crowd shows: shares are even over minutes, not over seconds.

    Args:
        permits: texts that the server takes at once.
        batch_texts: texts that one request may hold.
        share: this client's part of the permits where several are known to share them; None for all.
        timeout: seconds that one request may take, as configured.
        seconds_per_text: of a text alone, from the handshake; 0 for unknown.

    Attributes:
        in_flight: texts of requests under way.
        limit: texts that may be in flight; room for one request at least.
        request_texts: texts that one request may hold now; at least 1.
        timeout: seconds that one request may take now; longer than configured where requests honestly take long.
        drains_until: the time until which less is sent, so that the endpoint's queue drains.
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
        self._text_seconds = 0.0  # in_flight, integrated over time
        self._counted_until = 0.0
        self._configured_timeout = timeout
        self._batch_texts = batch_texts
        self._seconds_per_text = seconds_per_text
        self._ceiling = float(self.share)
        self._increase = FIRST_INCREASE * permits
        self._reduced_at = float("-inf")
        self._min_seconds = self._next_min_seconds = float("inf")
        self._window_ends = float("-inf")
        self.drains_until = float("-inf")
        self._wanted = 2.0 * self._max_request_texts()
        self._update()
        self._queue_target = QUEUE_TARGET * self.request_texts
        self.timeout = max(timeout, TIMEOUT_ROUND_TRIPS * self._wanted * seconds_per_text)

    def fits(self, texts: int, now: float = 0.0) -> bool:
        """Return whether a request of so many texts may go out now.

        Only whole requests are sent, so half of one must be within the limit; all of it within what the server takes.
        """
        if self.in_flight == 0:
            return True
        limit = self.limit
        if now < self.drains_until:
            limit = max(self.request_texts, int(limit - self._queue_target))
        return self.in_flight + texts / 2 <= limit and self.in_flight + texts <= self._ceiling

    def acquire(self, texts: int, now: float) -> float:
        """Count a request that goes out; return the text-seconds in flight until now, which `replied` takes."""
        self._count(now)
        self.in_flight += texts
        return self._text_seconds

    def release(self, texts: int, now: float) -> None:
        """Count a request that has ended, however it did."""
        self._count(now)
        self.in_flight -= texts

    def replied(
        self,
        texts: int,
        text_seconds: float,
        sent_at: float,
        seconds: float,
        queue_seconds: float,
        device_seconds: float,
        now: float,
    ) -> None:
        """Learn from a good reply. Call it before `release`.

        Args:
            texts: of the request.
            text_seconds: what `acquire` returned for it.
            sent_at: the time of that.
            seconds: of the round trip.
            queue_seconds: that its texts waited in the server's queue on average; 0 where that is unknown.
            device_seconds: that the device took; 0 where that is unknown.
            now: the time.
        """
        self._count(now)
        seconds = max(seconds, 1e-6)
        # The average, not what was in flight at one moment: replies come in bursts, and what goes out after each of
        # them would see less than was there most of the time.
        in_flight = (self._text_seconds - text_seconds) / (now - sent_at) if now > sent_at else 0.0
        in_flight = max(in_flight, texts)
        weight = texts / in_flight
        reported = queue_seconds + device_seconds >= MIN_REPORTED_SECONDS
        if not reported:
            queue_seconds, device_seconds = seconds - self._shortest(texts, in_flight, seconds, now), 0.0
        target = QUEUE_TARGET if reported else QUEUE_TARGET_UNREPORTED
        waiting_share = min(1.0, queue_seconds / seconds)
        on_device = in_flight * min(1.0, device_seconds / seconds)
        waiting = in_flight * waiting_share
        self._queue_target = max(target * max(on_device, self.request_texts), UNEVEN * in_flight)
        wanted = in_flight - waiting + self._queue_target
        if waiting < NO_QUEUE * self._queue_target:
            wanted = max(wanted, 2.0 * in_flight)
        # The limit may have doubled since the request was sent; still less was sent for want of texts.
        if in_flight < self._wanted / 2 - 2 * self.request_texts:
            wanted = min(wanted, self._wanted)  # there was less to send than was allowed: that shows no room for more
        two_requests = 2.0 * self._max_request_texts()
        wanted = max(wanted, two_requests)
        # The texts of a request wait for each other, too, but two requests of one client alone never make this less
        # than 1, even on a device that takes one text at a time. What it is depends on the server's queue, not on this
        # client's part of it: otherwise those who have more would keep more. Round trips alone show no crowd, because
        # the shortest one has the others' queue in it; there it is an endpoint that has become much slower. Without the
        # square, which makes a large crowd modest sooner, sixteen clients do not get even shares.
        crowd = (CROWD * (1 - waiting_share)) ** 2
        if crowd < 1:
            wanted = min(wanted, two_requests * (crowd if reported else 1))
        self._wanted = min(self._wanted + GAIN * weight * (wanted - self._wanted), float(self.permits))
        self._ceiling = min(float(self.permits), self._ceiling + self._increase * weight)
        self._increase = min(FIRST_INCREASE * self.permits, self._increase * (1 + (ACCELERATION - 1) * weight))
        # At least a tenth: where much is in flight, each reply is a small part of it, and a change of the endpoint's
        # speed must show after some ten of them.
        self._seconds_per_text += max(weight, 0.1) * (seconds / in_flight - self._seconds_per_text)
        self.timeout = min(MAX_TIMEOUT, max(self._configured_timeout, TIMEOUT_ROUND_TRIPS * seconds))
        self._update()

    def refused(self, sent_at: float, now: float) -> bool:
        """Lower the ceiling after a 429, once for all requests that were under way together; return whether it did.

        Call it before `release`. What counts is what was in flight, where that was less than the ceiling; but a client
        with little to send learns little from a refusal, so not much less.
        """
        if sent_at < self._reduced_at:
            return False
        self._reduced_at = now
        used = min(self.limit, max(self.in_flight, self.limit / 2))
        self._ceiling = float(self.share) if self.in_flight > self.share else max(1.0, used * DECREASE)
        self._increase = INCREASE * self.permits
        self._update()
        return True

    def timed_out(self, sent_at: float, now: float) -> bool:
        """Halve what is in flight and double the timeout, once for all requests that were under way together."""
        if sent_at < self._reduced_at:
            return False
        self._reduced_at = now
        # By Little's law again: so many texts take longer than this.
        self._seconds_per_text = max(self._seconds_per_text, self.timeout / max(1, self.in_flight))
        # Two requests at least: while one of them succeeds, the other's timeout is no sign of a dead server.
        self._wanted = max(2.0 * self._max_request_texts(), min(self._wanted, self.in_flight) / 2)
        self.timeout = min(MAX_TIMEOUT, 2 * self.timeout)
        self._update()
        return True

    def resize(self, permits: int, batch_texts: int, share: int | None = None) -> None:
        """Take what the server permits from now on."""
        self.permits = permits
        self.share = permits if share is None else min(share, permits)
        self._batch_texts = batch_texts
        self._ceiling = min(self._ceiling, float(permits))
        self._update()

    def _max_request_texts(self) -> int:
        """Return as many texts as the server takes, unless they would take more than half of the timeout."""
        if self._seconds_per_text <= 0:
            return self._batch_texts
        return min(self._batch_texts, max(2, int(self._configured_timeout / 2 / self._seconds_per_text)))

    def _update(self) -> None:
        # Once for each reply: the scheduler reads both some ten times for each request.
        texts = self._max_request_texts()
        limit = min(max(int(self._wanted), texts), int(self._ceiling))
        if limit < 2 * texts:
            # Whole requests alone would use a limit of one and a half by one or by two of them, as chance has it.
            texts = min(texts, limit // max(1, int(limit / texts + SECOND_REQUEST)))
        self.request_texts = max(1, texts)
        self.limit = max(self.request_texts, limit)

    def _count(self, now: float) -> None:
        if now > self._counted_until:
            if self.in_flight:
                self._text_seconds += self.in_flight * (now - self._counted_until)
            self._counted_until = now

    def _shortest(self, texts: int, in_flight: float, seconds: float, now: float) -> float:
        """Return the shortest round trip of a full request lately; let the queue drain when the last one grows old."""
        if texts >= math.ceil(FULL_ENOUGH * self.request_texts):
            self._min_seconds = min(self._min_seconds, seconds)
            self._next_min_seconds = min(self._next_min_seconds, seconds)
        if now >= self._window_ends:
            self._min_seconds, self._next_min_seconds = self._next_min_seconds, float("inf")
            self._window_ends = now + max(WINDOW_SECONDS, WINDOW_ROUND_TRIPS * min(seconds, self._min_seconds))
            # As long as the endpoint takes for what should be waiting there.
            self.drains_until = now + self._queue_target * seconds / in_flight
        return min(self._min_seconds, self._next_min_seconds, seconds)
