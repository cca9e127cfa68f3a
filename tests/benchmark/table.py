"""Results as text, as JSON, and as a picture."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

Value = str | float | int | None
Row = Mapping[str, Value]

_BAR, _LABEL, _STEP = 420, 130, 26


def text(rows: Sequence[Row]) -> str:
    """Rows with the same columns as a table in Markdown."""
    columns = list(rows[0])
    cells = [columns, *([_shown(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(f"| {line} |" for line in [lines[0], "-|-".join("-" * width for width in widths), *lines[1:]])


def _shown(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if value else "0"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else value


def say(text: str) -> None:
    """Tell the person at the terminal."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def machine() -> str:
    """What the numbers were measured on."""
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {platform.system()}"


def publish(folder: Path, name: str, rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Print a table with its notes, and write it as NAME.json beside the others."""
    notes = [*notes, machine()]
    say("\n\n".join([text(rows), *notes]))
    folder.mkdir(parents=True, exist_ok=True)
    told = {"rows": rows, "notes": notes}
    (folder / f"{name}.json").write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def draw(path: Path, title: str, bars: Mapping[str, float], unit: str) -> None:
    """Write a picture (SVG) of one number for each name."""
    most = max(bars.values())
    height = 50 + _STEP * len(bars)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LABEL + _BAR + 120}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="24" font-size="15">{escape(title)}</text>',
    ]
    for place, (name, value) in enumerate(bars.items()):
        top = 40 + _STEP * place
        width = max(1.0, _BAR * value / most)
        colour = "#0a7d6c" if name == "Tayyar" else "#9aa5b1"
        parts += [
            f'<text x="{_LABEL - 8}" y="{top + 14}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LABEL}" y="{top}" width="{width:.1f}" height="18" fill="{colour}"/>',
            f'<text x="{_LABEL + width + 6:.1f}" y="{top + 14}">{_shown(value)} {escape(unit)}</text>',
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
