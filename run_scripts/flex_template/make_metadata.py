"""Writes metadata.json beside this file: the parameters of the template, out of the options of `tayyar run`.

python -m run_scripts.flex_template.make_metadata
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.commands.options.declare import Declaration, declarations
from pipeline.commands.options.run import RunOptions

PATH = Path(__file__).with_name("metadata.json")
_PLACE = r"^gs://[^/\s].*"  # workers have no library for s3://
_REGEXES = {
    "input": _PLACE,
    "output": _PLACE,
    "endpoint": r"^https?://\S+(\s+https?://\S+)*$",
    "token": "^(env:|file:|gsm:projects/).+",
    "header": r"^[^\s:]+:\s*(env:|file:|gsm:projects/|literal:).+",
}
_HELP = {
    "input": "NDJSON files, also compressed (.gz, .bz2, .zst): gs:// path, folder, or pattern with *, ?, **; "
    "several with blanks between them",
    "endpoint": "base URL of a TEI server that launcher and workers reach; several with blanks between them",
    "token": "where the bearer token is: gsm:projects/…/secrets/…/versions/…; never the token itself",
    "header": "further headers, as NAME: REFERENCE with a reference like the token's, or literal:VALUE for what is "
    "plainly no secret; several with blanks between them",
}
_NUMBERS = {"int": r"^[0-9]+$", "float": r"^[0-9]+(\.[0-9]+)?$"}
_REQUIRED = ("input", "output", "endpoint")  # without an endpoint, a server would be started beside the launcher


def metadata() -> dict[str, Any]:
    """Return what the file holds."""
    image = {
        "name": "sdk_container_image",
        "label": "Image of the workers",
        "helpText": "this template's image, for workers that cannot reach PyPI; without it they install the package.",
        "isOptional": True,
        "paramType": "TEXT",
    }
    return {
        "name": "Tayyar",
        "description": "Embeds the documents of NDJSON files through a Text Embeddings Inference endpoint.",
        "parameters": [*map(_parameter, declarations(RunOptions)), image],
    }


def _parameter(option: Declaration) -> dict[str, Any]:
    name = option.flag.removeprefix("--")
    text = _HELP.get(name) or option.shown_meaning
    found: dict[str, Any] = {
        "name": name,
        "label": name.replace("_", " ").capitalize(),
        "helpText": f"{text[0].upper()}{text[1:]}.",
        "isOptional": name not in _REQUIRED,
        "paramType": "TEXT",
    }
    if name in _REGEXES:
        found["regexes"] = [_REGEXES[name]]
    if option.is_switch:
        found["paramType"] = "BOOLEAN"
    elif option.choices is not None:
        found["paramType"] = "ENUM"
        found["enumOptions"] = [{"value": choice.value, "label": choice.value} for choice in option.choices]
    elif (kind := getattr(option.parse, "__name__", "")) in _NUMBERS:
        found["regexes"] = [_NUMBERS[kind]]
    if not option.is_switch and option.shown_default:
        found["defaultValue"] = option.shown_default
    return found


if __name__ == "__main__":
    PATH.write_text(json.dumps(metadata(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
