"""Settings as values: frozen dataclasses of numbers, strings and one another, read from JSON and written to it.

A layer, a routing, a loss, a decoder is one. Its JSON is its fields and, as "type", the name of its class. Every class
checks its own fields when it is made; what comes from a stranger's file is therefore checked like what a user writes.
"""

from __future__ import annotations

import sys
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from inspect import isabstract
from typing import Any, ClassVar

from .errors import SpecError, short

MAX_SIZE = 1_000_000  # of a number that says how large something is
MAX_ITEMS = 1000  # of a list

Pair = int | tuple[int, int]  # one number for height and width, or one for each


class Value:
    """A frozen dataclass of settings; deriving from it makes the class known to `read` under its name.

    Defining a class again, as notebooks and reloads do, takes the place of the one before. SpecError if a class that
    is defined elsewhere has the name.
    """

    known: ClassVar[dict[str, type[Value]]] = {}
    _home: ClassVar[tuple[str, str]]  # where the class is defined

    def __init_subclass__(cls, **settings: Any) -> None:
        """Make the class known."""
        super().__init_subclass__(**settings)
        cls.__repr__ = Value.__repr__  # type: ignore[method-assign]  # a dataclass keeps the one that its class has
        # One file may be two modules: a script that runs is __main__, and is itself when another file imports it.
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        cls._home = str(file or cls.__module__), cls.__qualname__
        other = Value.known.get(cls.__name__)
        if other is not None and other._home != cls._home:
            raise SpecError(
                f"a class {cls.__name__} is there already, in {_told(other)}: models and specs know classes by their "
                f"names, so give the one in {_told(cls)} another name"
            )
        Value.known[cls.__name__] = cls

    def __repr__(self) -> str:
        """Return how to make it: the settings that are not the usual ones."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.chosen().items())})"

    def chosen(self) -> dict[str, Any]:
        """Return those settings by name that are not the usual ones."""
        usual = {field.name: field.default for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in self.settings().items() if value != usual[name]}

    def settings(self) -> dict[str, Any]:
        """Return every field by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


def write(value: Any) -> Any:
    """Return what `json.dumps` takes of a value; `read` makes the same value of it."""
    if isinstance(value, Value):
        return {"type": type(value).__name__} | {name: write(item) for name, item in value.settings().items()}
    return [write(item) for item in value] if isinstance(value, tuple) else value


def read(data: Any, where: str, kind: type[Value] | None = None, among: type[Value] = Value) -> Any:
    """Return the value that untrusted JSON describes: objects as values, lists as tuples.

    Objects, also those of a list, are of class `kind` if that is given, else of the class that their "type" names, one
    of the kinds of `among`. SpecError says what is wrong, and `where`.
    """
    if isinstance(data, list):
        if len(data) > MAX_ITEMS:
            raise SpecError(f"{where} has {len(data):,} items; at most {MAX_ITEMS} are allowed")
        return tuple(read(item, f"{where}.{i}", kind, among) for i, item in enumerate(data))
    if not isinstance(data, dict):
        return data
    values = dict(data)
    name = values.pop("type", None)
    if kind is None:
        known = {key: of for key, of in Value.known.items() if issubclass(of, among)}
        concrete = {key: of for key, of in known.items() if not isabstract(of) and is_dataclass(of)}
        kind = concrete.get(name) if isinstance(name, str) else None
        if kind is None:
            nearest = get_close_matches(short(name), concrete, 5, 0)
            raise SpecError(f"{where}: type {short(name)} is unknown; the nearest known are {', '.join(nearest)}")
    check_names({f.name: f.default is MISSING for f in fields(kind)}, values, where)  # type: ignore[arg-type]
    items = {field: read(item, f"{where}.{field}") for field, item in values.items()}
    try:
        return kind(**items)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None


def check_names(known: dict[str, bool], values: dict[str, Any], where: str) -> None:
    """Raise SpecError unless `values` has no names but `known` ones, and all of those that are needed (True)."""
    if unknown := [short(name) for name in values if name not in known]:
        raise SpecError(f"{where} has no field {', '.join(unknown[:3])}; its fields are {', '.join(known)}")
    if missing := [name for name, needed in known.items() if needed and name not in values]:
        raise SpecError(f"{where} lacks {', '.join(missing)}")


def check_whole(value: Any, *names: str, least: int = 1, most: int = MAX_SIZE) -> None:
    """Raise SpecError unless these fields are whole numbers from `least` to `most`."""
    for name in names:
        size = getattr(value, name)
        if type(size) is not int or not least <= size <= most:
            raise _wrong(value, name, f"a whole number from {least} to {most:,}")


def check_pairs(value: Value, *names: str, least: int = 1) -> None:
    """Raise SpecError unless these fields are whole numbers of at least `least`, or pairs of them."""
    for name in names:
        size = getattr(value, name)
        if isinstance(size, list):
            object.__setattr__(value, name, size := tuple(size))
        pair = size if isinstance(size, tuple) else (size, size)
        if len(pair) != 2 or not all(type(n) is int and least <= n <= MAX_SIZE for n in pair):
            raise _wrong(value, name, f"a whole number from {least} to {MAX_SIZE:,}, or two: (height, width)")


def check_numbers(value: Value, *names: str, least: float = 0.0, most: float = 1e9) -> None:
    """Raise SpecError unless these fields are numbers from `least` to `most`."""
    for name in names:
        number = getattr(value, name)
        if type(number) not in (int, float) or not least <= number <= most:
            raise _wrong(value, name, f"a number from {least:g} to {most:g}")


def check_flags(value: Any, *names: str) -> None:
    """Raise SpecError unless these fields are true or false."""
    for name in names:
        if type(getattr(value, name)) is not bool:
            raise _wrong(value, name, "true or false")


def check_choice(value: Value, name: str, *choices: str) -> None:
    """Raise SpecError unless the field is one of `choices`."""
    if getattr(value, name) not in choices:
        raise _wrong(value, name, " or ".join(f'"{choice}"' for choice in choices))


def check_kind(value: Any, name: str, kind: type, example: str, *, optional: bool = False) -> None:
    """Raise SpecError unless the field is of class `kind` (or None, if `optional`)."""
    found = getattr(value, name)
    if not (isinstance(found, kind) or (optional and found is None)):
        raise _wrong(value, name, f"a {kind.__name__} such as {example}{' or None' if optional else ''}")


def sizes(value: Any, what: str) -> tuple[int, ...]:
    """Return a sequence of sizes as a tuple, or raise SpecError."""
    if isinstance(value, list | tuple) and len(value) > MAX_ITEMS:
        raise SpecError(f"{what} has {len(value):,} sizes; at most {MAX_ITEMS} are allowed")
    if not isinstance(value, list | tuple) or not all(type(v) is int and 1 <= v <= MAX_SIZE for v in value):
        raise SpecError(f"{what} must be whole numbers from 1 to {MAX_SIZE:,}, not {short(value)}")
    return tuple(value)


def pair(size: Pair) -> tuple[int, int]:
    """Return one number as two."""
    return size if isinstance(size, tuple) else (size, size)


def _told(kind: type[Value]) -> str:
    file, qualname = kind._home
    return f"{kind.__module__} ({file}, {qualname})"


def _wrong(value: Any, name: str, wanted: str) -> SpecError:
    return SpecError(f"{type(value).__name__}: {name} must be {wanted}, not {short(getattr(value, name))}")
