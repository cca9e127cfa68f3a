"""A worker process of Beam's local runner: Beam's own harness, whose log on the terminal is that of the launcher.

The runner starts it with `python -m`. Started as its own module, the harness would print Beam's warnings once a
process, in another form than the launcher's.
"""

import sys

from pipeline.logs import configure_logging

if __name__ == "__main__":
    configure_logging()  # before Beam is imported, which warns of a package that nothing here needs
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)
