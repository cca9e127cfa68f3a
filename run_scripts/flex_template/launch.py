"""What a Flex Template's launcher calls: `tayyar run` with a template's parameters, which are all texts."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.__main__ import main

_SETUP = Path(__file__).with_name("setup.py")
_SWITCHES = ("overwrite", "no_normalize")
_LISTS = {"input": r"\s+(?=\w+://)", "endpoint": r"\s+"}  # what separates their parts


def to_arguments(parameters: Sequence[str]) -> Iterator[str]:
    """Yield the arguments of `run` for `--name=value` parameters.

    A switch is given as true or false, a list as one text, and an empty value means that nothing was given.
    """
    for parameter in parameters:
        name, separator, value = parameter.removeprefix("--").partition("=")
        if not separator:
            yield parameter
        elif name in _SWITCHES:
            if value.lower() not in ("true", "false", ""):
                sys.exit(f"{name} is {value}; it must be true or false")
            yield from [f"--{name}"] * (value.lower() == "true")
        elif value.strip():
            parts = re.split(_LISTS[name], value.strip()) if name in _LISTS else [value]
            yield from (f"--{name}={part}" for part in parts)
    if not any(re.match(r"--(sdk_container_image|setup_file)=.", parameter) for parameter in parameters):
        yield f"--setup_file={_SETUP}"


if __name__ == "__main__":
    sys.exit(main(["run", *to_arguments(sys.argv[1:])]))
