"""The server alone: `python -m pipeline.embedded_tei`."""

import argparse
import sys

try:
    from pipeline.embedded_tei.server import add_arguments, main
except ModuleNotFoundError as error:
    # One sentence, because the process that started this one shows it to a person.
    sys.exit(f"a package is missing ({error}): {sys.executable} -m pip install 'tayyar[local]'")

if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m pipeline.embedded_tei", description=__doc__, allow_abbrev=False)
    add_arguments(parser)
    sys.exit(main(parser.parse_args()))
