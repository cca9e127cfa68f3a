from __future__ import annotations

import numpy as np

from pipeline.planning.throughput import Level, Speed, probe_speed
from pipeline.runners.endpoint import probed
from tests.commands import texts_embedded
from tests.tei_simulator.process import TeiSimulator
from transforms.tei.settings import EndpointSettings

TEXTS = [f"text number {number}" for number in range(50)]


def speed_of(faults: str, permits: int, max_in_flight: int | None = None) -> Speed:
    arguments = ["--faults", faults, "--max_concurrent_requests", str(permits)]
    arguments += ["--max_batch_requests", "32"]
    with TeiSimulator(arguments) as server:
        settings, _ = probed(EndpointSettings((server.url,), max_in_flight=max_in_flight), None)
        return probe_speed(settings, permits, TEXTS)


def test_a_device_of_known_speed_is_found_to_have_it() -> None:
    # 0.1 s for a batch of at most 32 texts: 320 texts a second, however many are in flight
    found = speed_of('{"batch_seconds": 0.1}', permits=512)
    slower = speed_of('{"batch_seconds": 0.4}', permits=512)
    assert len(found.levels) <= 4
    # How far both are below what their devices can is the test's machine's affair.
    assert found.best.documents_per_second < 400
    assert 2 < found.best.documents_per_second / slower.best.documents_per_second < 6
    assert found.embeddings.vectors.shape == (4, 384)
    assert np.isfinite(found.embeddings.vectors).all()


def test_no_more_is_in_flight_than_is_permitted() -> None:
    assert [level.in_flight for level in speed_of("{}", permits=20).levels] == [20]
    assert [level.in_flight for level in speed_of("{}", permits=512, max_in_flight=8).levels] == [8]


def test_the_best_is_the_fastest() -> None:
    levels = (Level(32, 10.0), Level(64, 30.0), Level(128, 20.0))
    embeddings = speed_of("{}", permits=4).embeddings
    assert Speed(levels, embeddings).best == levels[1]


def test_a_slow_endpoint_is_measured_as_far_as_the_time_allows_and_no_longer() -> None:
    with TeiSimulator(["--faults", '{"texts_per_second": 60}', "--max_batch_requests", "4"]) as server:
        settings, _ = probed(EndpointSettings((server.url,)), None)
        before = texts_embedded(server.url)
        found = probe_speed(settings, 512, TEXTS, max_seconds=3)
        embedded = texts_embedded(server.url) - before
    assert [level.in_flight for level in found.levels] == [32]
    assert 20 < found.best.documents_per_second < 70
    # 96 texts and more were asked for before the end, and what was under way then was not waited for.
    assert embedded < 300


def test_an_endpoint_that_embeds_nothing_in_time_is_known_by_its_first_texts() -> None:
    with TeiSimulator(["--faults", '{"texts_per_second": 60}', "--max_batch_requests", "4"]) as server:
        settings, _ = probed(EndpointSettings((server.url,)), None)
        found = probe_speed(settings, 512, TEXTS, max_seconds=0)
    (level,) = found.levels
    assert level.in_flight == 4
    assert 10 < level.documents_per_second < 60
