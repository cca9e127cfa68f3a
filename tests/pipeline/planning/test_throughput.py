from __future__ import annotations

from pipeline.planning.throughput import Level, fastest, probe_speed
from pipeline.runners.endpoint import probe_endpoint
from tests.commands import texts_embedded
from tests.tei_simulator.clients import Simulator
from tests.tei_simulator.process import TeiSimulator
from transforms.tei.settings import EndpointSettings

TEXTS = [f"text number {number}" for number in range(50)]
SLOW = ("--faults", '{"texts_per_second": 60}', "--max_batch_requests", "4")


def levels_of(faults: str, permits: int, max_in_flight: int | None = None) -> list[Level]:
    arguments = ["--faults", faults, "--max_concurrent_requests", str(permits)]
    arguments += ["--max_batch_requests", "32"]
    with TeiSimulator(arguments) as server:
        settings = EndpointSettings((server.url,), max_in_flight=max_in_flight)
        profile = probe_endpoint(settings, None)
        return probe_speed(settings, profile, permits, TEXTS, max_seconds=11)


def test_a_device_of_known_speed_is_found_to_have_it() -> None:
    # 0.1 s for a batch of at most 32 texts: 320 texts a second, however many are in flight
    found = levels_of('{"batch_seconds": 0.1}', permits=512)
    slower = levels_of('{"batch_seconds": 0.4}', permits=512)
    assert len(found) <= 4
    # How far both are below what their devices can is the test's machine's affair.
    assert fastest(found).documents_per_second < 400
    assert 2 < fastest(found).documents_per_second / fastest(slower).documents_per_second < 6


def test_no_more_is_in_flight_than_is_permitted() -> None:
    assert [level.in_flight for level in levels_of("{}", permits=20)] == [20]
    assert [level.in_flight for level in levels_of("{}", permits=512, max_in_flight=8)] == [8]


def test_the_fastest_level_counts() -> None:
    levels = (Level(32, 10.0), Level(64, 30.0), Level(128, 20.0))
    assert fastest(levels) == levels[1]


def test_a_slow_endpoint_is_measured_as_far_as_the_time_allows_and_no_longer() -> None:
    with TeiSimulator(SLOW) as server:
        settings = EndpointSettings((server.url,))
        profile = probe_endpoint(settings, None)
        before = texts_embedded(server.url)
        found = probe_speed(settings, profile, 512, TEXTS, max_seconds=3)
        embedded = texts_embedded(server.url) - before
    assert max(level.in_flight for level in found) <= 64
    assert 20 < fastest(found).documents_per_second < 70
    # 256 texts and more were asked for before the end, and what was under way then was not waited for.
    assert embedded < 300


def test_a_slow_endpoint_gets_small_requests_and_no_second_handshake() -> None:
    with TeiSimulator(SLOW) as server:
        settings = EndpointSettings((server.url,))
        profile = probe_endpoint(settings, None)
        before = Simulator(server.url).statistics()
        found = probe_speed(settings, profile, 512, TEXTS, max_seconds=0.3)
        after = Simulator(server.url).statistics()
    assert 1 <= found[0].in_flight <= 8
    assert after["info_requests"] == before["info_requests"]


def test_an_endpoint_that_embeds_nothing_in_time_is_known_by_its_handshake() -> None:
    with TeiSimulator(SLOW) as server:
        settings = EndpointSettings((server.url,))
        profile = probe_endpoint(settings, None)
        found = probe_speed(settings, profile, 512, TEXTS, max_seconds=0)
    assert found == [Level(1, 1 / profile.seconds_per_text)]
