"""Options as dataclasses: each field declares its option once, for the parser, the help and the command alike."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import inspect
import math
import shutil
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, TypeVar

_METADATA = "declaration"
OptionsT = TypeVar("OptionsT", bound="Options")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The base of all groups of options and of the options of all commands.

    Attributes:
        TITLE: of the group in the help under which the class's own options stand.
        SUMMARY: of a command, for the list of commands.
        EXAMPLE: of a command.
        BEAM: for a command that passes options on to Beam, what its help says about them.
        IGNORED: the options that a command takes without using them.
    """

    TITLE: ClassVar[str] = "options"
    SUMMARY: ClassVar[str]
    EXAMPLE: ClassVar[str]
    BEAM: ClassVar[str | None] = None
    IGNORED: ClassVar[type[Options] | None] = None

    def __post_init__(self) -> None:
        """Check what depends on several options.

        Raises:
            UsageError: naming the option, its value and the remedy.
        """


@dataclass(frozen=True, slots=True)
class Declaration:
    """One declared option.

    Attributes:
        flag: as it is typed: `--shard_bytes`.
        field: of the dataclass that gets the value.
        meaning: for the help, without its default.
        parse: makes the value out of one word; raises UsageError, or as argparse expects it.
        metavar: the value's name in the help.
        choices: an enumeration whose members the values name; None for any value.
        repeatable: whether the field is a tuple of all values that are given.
        default: of the field; MISSING where the option is required.
    """

    flag: str
    field: str
    meaning: str
    parse: Callable[[str], Any]
    metavar: str | None
    choices: type[enum.Enum] | None
    repeatable: bool
    default: Any

    @property
    def is_switch(self) -> bool:
        """Whether the option takes no value."""
        return isinstance(self.default, bool)

    @property
    def shown_default(self) -> str:
        """The default for a person; empty where there is none, or where it is what the meaning says."""
        shown = " ".join(self.default) if isinstance(self.default, tuple) else self.default
        shown = shown.value if isinstance(shown, enum.Enum) else shown
        return "" if self.is_switch or shown in (MISSING, None) else str(shown)

    @property
    def shown_meaning(self) -> str:
        """The meaning with the default."""
        return f"{self.meaning} (default: {self.shown_default})" if self.shown_default else self.meaning

    def add_to(self, parser: argparse._ActionsContainer, *, hidden: bool = False) -> None:
        """Add the option to a parser or a group; a hidden one is not in the help and never required."""
        # Only what was given is in the result of a parser, and the dataclass has the defaults.
        how: dict[str, Any] = {"dest": self.field, "default": argparse.SUPPRESS, "help": self.shown_meaning}
        if hidden:
            how["help"] = argparse.SUPPRESS
        if self.is_switch:
            how["action"] = "store_false" if self.default else "store_true"
        else:
            how |= {"type": self.parse, "action": "append" if self.repeatable else "store", "metavar": self.metavar}
            how["required"] = self.default is MISSING and not hidden
            if self.choices is not None:
                how["choices"] = [choice.value for choice in self.choices]
            elif self.metavar is None:
                how["metavar"] = self.flag[2:].upper()
        parser.add_argument(self.flag, **how)


def option(
    flag: str | None = None,
    *,
    meaning: str,
    default: Any = MISSING,
    parse: Callable[[str], Any] = str,
    metavar: str | None = None,
    choices: type[enum.Enum] | None = None,
    repeatable: bool = False,
) -> Any:
    """Declare a dataclass's field as an option of the command line.

    Args:
        flag: as it is typed; None for the field's name behind two hyphens.
        meaning: for the help; its default is added.
        default: of the field. Without one the option is required; one of True or False makes it a switch.
        parse: as in `Declaration`.
        metavar: as in `Declaration`.
        choices: as in `Declaration`.
        repeatable: as in `Declaration`.
    """
    declaration = Declaration(flag or "", "", meaning, parse, metavar, choices, repeatable, default)
    return dataclasses.field(default=default, metadata={_METADATA: declaration})


def declarations(options: type[Options]) -> list[Declaration]:
    """Return the options of a command in the order of its help: those of its groups first, then its own."""
    return [declaration for group in _groups(options) for declaration in _own(group)]


def add_options(parser: argparse.ArgumentParser, options: type[Options]) -> None:
    """Add all options of a command to its parser."""
    groups: dict[str, argparse._ActionsContainer] = {Options.TITLE: parser}
    for group in _groups(options):
        for declaration in _own(group):
            if group.TITLE not in groups:
                groups[group.TITLE] = parser.add_argument_group(group.TITLE)
            declaration.add_to(groups[group.TITLE])
    if options.IGNORED is not None:
        known = {declaration.flag for declaration in declarations(options)}
        for declaration in declarations(options.IGNORED):
            if declaration.flag not in known:
                declaration.add_to(parser, hidden=True)
    if options.BEAM is not None:
        parser.add_argument_group("Beam", filled(options.BEAM))


def filled(text: str) -> str:
    """Return a text of the help broken to the terminal's width, as argparse does unless examples keep their lines."""
    return textwrap.fill(text, shutil.get_terminal_size().columns - 2)


def make_options(options: type[OptionsT], parsed: argparse.Namespace) -> OptionsT:
    """Return what a parser found as a command's options.

    Raises:
        UsageError: if options contradict each other.
    """
    given = {each.name: getattr(parsed, each.name) for each in fields(options) if hasattr(parsed, each.name)}
    for each in declarations(options):
        if each.field in given and each.choices is not None:
            given[each.field] = each.choices(given[each.field])
        elif each.field in given and each.repeatable:
            given[each.field] = tuple(given[each.field])
    return options(**given)


def number_within(kind: Callable[[str], float], minimum: float, maximum: float = math.inf) -> Callable[[str], float]:
    """Return a parser of finite numbers within bounds."""

    def parse(text: str) -> float:
        value = kind(text)
        if not minimum <= value <= maximum or math.isinf(value):
            bounds = f"at least {minimum}" if maximum == math.inf else f"from {minimum} to {maximum}"
            raise argparse.ArgumentTypeError(f"{text} is not {bounds}")
        return value

    parse.__name__ = kind.__name__  # argparse names it in its message
    return parse


def _groups(options: type[Options]) -> Iterator[type[Options]]:
    """Yield a class's bases from left to right, each one's own before it, and the class at last."""
    seen: dict[type[Options], None] = {}
    for base in options.__bases__:
        if issubclass(base, Options):
            seen.update(dict.fromkeys(_groups(base)))
    yield from seen
    yield options


def _own(group: type[Options]) -> Iterator[Declaration]:
    """Yield the options that a class itself declares."""
    names = inspect.get_annotations(group)
    for each in fields(group):
        if each.name in names and _METADATA in each.metadata:
            declared: Declaration = each.metadata[_METADATA]
            yield dataclasses.replace(
                declared, flag=declared.flag or f"--{each.name}", field=each.name, default=each.default
            )
