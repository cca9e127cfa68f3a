"""What a Flex Template's launcher calls: `tayyar run` with a template's parameters, which are all texts."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.__main__ import main
from pipeline.commands.options.declare import declarations
from pipeline.commands.options.run import RunOptions

_SETUP = Path(__file__).with_name("setup.py")
_OPTIONS = {option.flag.removeprefix("--"): option for option in declarations(RunOptions)}
_SWITCHES = {name for name, option in _OPTIONS.items() if option.is_switch}
# What separates the parts of a list; paths may hold blanks, and a header has one behind its name.
_SEPARATORS = {"input": r"\s+(?=\w+://)", "header": r"\s+(?=[^\s:]+:\s*(?:env|file|gsm|literal):)"}
_LISTS = {name: _SEPARATORS.get(name, r"\s+") for name, option in _OPTIONS.items() if option.repeatable}


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
