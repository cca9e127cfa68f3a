"""Writes metadata.json beside this file: the parameters of the template, out of the options of `tayyar run`.

python -m run_scripts.flex_template.make_metadata
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pipeline.commands.options import make_parser, options_of

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
        "parameters": [*(_parameter(action) for action in options_of(make_parser(), "run")), image],
    }


def _parameter(action: argparse.Action) -> dict[str, Any]:
    name = action.dest
    text = _HELP.get(name) or str(action.help) % {"default": action.default}
    found: dict[str, Any] = {
        "name": name,
        "label": name.replace("_", " ").capitalize(),
        "helpText": f"{text[0].upper()}{text[1:]}.",
        "isOptional": name not in _REQUIRED,
        "paramType": "TEXT",
    }
    if name in _REGEXES:
        found["regexes"] = [_REGEXES[name]]
    if isinstance(action, argparse._StoreTrueAction):
        found["paramType"] = "BOOLEAN"
    elif action.choices is not None:
        found["paramType"] = "ENUM"
        found["enumOptions"] = [{"value": choice, "label": choice} for choice in action.choices]
    elif action.type is not None:
        found["regexes"] = [r"^[0-9]+$" if getattr(action.type, "__name__", "") == "int" else r"^[0-9]+(\.[0-9]+)?$"]
    if action.default not in (None, False) and action.default != []:
        found["defaultValue"] = str(action.default)
    return found


if __name__ == "__main__":
    PATH.write_text(json.dumps(metadata(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
