"""The server alone: `python -m pipeline.embedded_tei`."""

import argparse
import sys

from pipeline.embedded_tei.server import add_arguments, main

if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m pipeline.embedded_tei", description=__doc__, allow_abbrev=False)
    add_arguments(parser)
    sys.exit(main(parser.parse_args()))
