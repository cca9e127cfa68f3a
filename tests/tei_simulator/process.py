"""Start the simulator as a child process."""

from __future__ import annotations

from pipeline.embedded_tei.process import EmbeddedTei


class TeiSimulator(EmbeddedTei):
    """The simulator as a child; its arguments are options of `python -m tests.tei_simulator`."""

    module = "tests.tei_simulator"
