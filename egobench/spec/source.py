"""A YAML file as data in which every key and value knows its line and column.

Only what a matrix needs of YAML is let in: mappings, lists, words and numbers in one document.
Anchors, aliases, merge keys and tags are refused, which also closes YAML's ways to explode or to
run code. Files are text of at most 1 MiB.
"""

from __future__ import annotations

import difflib
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from egobench.errors import InvalidInput, Mistake
from egobench.spec.scalars import Misread, read_plain

Loc = tuple[str | int, ...]
"""Way from the top of a document to a value: keys and list indices."""

MOST_BYTES: Final = 1024 * 1024
_MOST_DEPTH: Final = 24
_MOST_MISTAKES: Final = 100
_PARSER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Source:
    """One document: its data, and where each piece of it stands."""

    path: str
    """As the user gave it."""
    text: str
    data: dict[str, Any]
    values: dict[Loc, tuple[int, int]] = field(repr=False)
    """Line and column (from 1) of each value."""
    keys: dict[Loc, tuple[int, int]] = field(repr=False)
    """Line and column of each mapping key."""
    words: dict[Loc, str] = field(repr=False)
    """The unquoted word behind each value that is not text."""

    def where(self, loc: Sequence[str | int], key: bool = False) -> str:
        """Return `file:line:column` of a value or its key, or of the nearest thing around it."""
        way = tuple(loc)
        table = self.keys if key and way in self.keys else self.values
        while way not in table and way:
            way, table = way[:-1], self.values
        line, column = table.get(way, (1, 1))
        return f"{self.path}:{line}:{column}"

    def mistake(
        self, loc: Sequence[str | int], what: str, allowed: str = "", todo: str = "", key: bool = False
    ) -> Mistake:
        """Return a mistake at this place."""
        name = dotted(loc)
        return Mistake(self.where(loc, key) + (f": {name}" if name else ""), what, allowed, todo)


def dotted(loc: Sequence[str | int]) -> str:
    """Return `axes.strategy[1]`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_source(path: str | Path) -> Source:
    """Read one YAML file.

    Raises:
        InvalidInput: everything that is wrong with the file as a file and as YAML.
    """
    name = str(path)
    text = _decode(name, _read_bytes(name))
    reader = _Reader(name)
    reader.read(text)
    if reader.mistakes:
        raise InvalidInput(reader.mistakes)
    if not reader.documents or reader.documents[0] is None:
        raise _refuse(name, "the file is empty", "it must hold keys and values", "see the examples in benchmarks/")
    if not isinstance(reader.documents[0], dict):
        kind = "a list" if isinstance(reader.documents[0], list) else "a single value"
        raise _refuse(f"{name}:1:1", f"the file holds {kind}", "it must hold keys and values (`name: ...`)")
    return Source(name, text, reader.documents[0], reader.values, reader.keys, reader.words)


def _refuse(where: str, what: str, allowed: str = "", todo: str = "") -> InvalidInput:
    return InvalidInput([Mistake(where, what, allowed, todo)])


def _read_bytes(name: str) -> bytes:
    """Read the file, or say why not; looks at its size first, so that a huge one answers at once."""
    path = Path(name)
    try:
        facts = path.stat()
        if stat.S_ISDIR(facts.st_mode):
            raise _refuse(name, "is a folder", "a YAML file", "name a file in it")
        if not stat.S_ISREG(facts.st_mode):
            raise _refuse(name, "is not a regular file", "a YAML file on disk")
        if facts.st_size > MOST_BYTES:
            raise _refuse(name, f"the file has {facts.st_size:,} bytes", f"at most {MOST_BYTES:,} bytes of YAML text")
        return path.read_bytes()
    except FileNotFoundError:
        raise _refuse(name, "no such file", todo=_neighbour(path)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _refuse(name, f"cannot be read: {reason}", todo="check the path and its permissions") from None


def _neighbour(path: Path) -> str:
    """Name the file of the same folder that was probably meant."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    names = [one.name for one in path.parent.iterdir() if one.suffix in (".yaml", ".yml")]
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"did you mean '{path.with_name(close[0])}'?" if close else "check the path"


def _decode(name: str, data: bytes) -> str:
    if b"\0" in data:
        raise _refuse(name, "the file is binary (or UTF-16)", "YAML text in UTF-8", "save it as UTF-8 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        what = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise _refuse(f"{name}:{line}:{column}", what, "UTF-8 text", "save the file as UTF-8") from None


@dataclass
class _Frame:
    """A mapping or list that is being read."""

    loc: Loc
    box: dict[str, Any] | list[Any]
    key: str | None = None
    """Key that waits for its value."""
    skip: bool = False
    """The waiting value belongs to a refused key."""


class _Reader:
    """Builds data from parser events with a stack of its own, so that depth costs no recursion."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.mistakes: list[Mistake] = []
        self.documents: list[Any] = []
        self.values: dict[Loc, tuple[int, int]] = {}
        self.keys: dict[Loc, tuple[int, int]] = {}
        self.words: dict[Loc, str] = {}
        self.stack: list[_Frame] = []

    def read(self, text: str) -> None:
        """Read the events of one stream until its end or until there are too many mistakes."""
        try:
            for event in yaml.parse(text, Loader=_PARSER):
                self._take(event)
                if len(self.mistakes) >= _MOST_MISTAKES:
                    self._add(event, "too many mistakes", todo="the rest of the file was not read")
                    return
        except _TooDeep:
            return
        except yaml.YAMLError as error:
            self.mistakes.append(_syntax(self.name, text, error))

    def _add(self, event: yaml.Event, what: str, allowed: str = "", todo: str = "") -> None:
        line, column = _position(event)
        self.mistakes.append(Mistake(f"{self.name}:{line}:{column}", what, allowed, todo))

    def _take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.DocumentStartEvent) and self.documents:
            self._add(event, "a second document starts here", "one document per file", "move it to a file of its own")
        elif isinstance(event, yaml.AliasEvent):
            self._add(event, f"*{event.anchor} is an alias", "no anchors and aliases", "write the value out")
            self._place(event, None, is_word=True)
        elif isinstance(event, yaml.ScalarEvent):
            self._refuse_marks(event)
            self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._refuse_marks(event)
            self._open(event, {} if isinstance(event, yaml.MappingStartEvent) else [])
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self.stack.pop()

    def _refuse_marks(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        if event.anchor is not None:
            self._add(event, f"&{event.anchor} is an anchor", "no anchors and aliases", "write the value out")
        if event.tag is not None:
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            self._add(event, f"'{tag}' is a tag", "plain values only", "remove the tag")

    def _open(self, event: yaml.Event, box: dict[str, Any] | list[Any]) -> None:
        if len(self.stack) >= _MOST_DEPTH:
            self._add(event, "nested too deeply", f"at most {_MOST_DEPTH} levels")
            raise _TooDeep
        top = self.stack[-1] if self.stack else None
        if top is not None and isinstance(top.box, dict) and top.key is None:
            self._add(event, "a list or mapping as a key", "keys are words")
            # Its content is read for its own mistakes, but goes nowhere; the key's value is skipped.
            top.key, top.skip = "", True
            self.stack.append(_Frame((*top.loc, ""), box))
            return
        self.stack.append(_Frame(self._place(event, box), box))

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        top = self.stack[-1] if self.stack else None
        is_key = top is not None and isinstance(top.box, dict) and top.key is None and not top.skip
        value: Any = event.value
        if event.implicit[0]:
            try:
                value = read_plain(event.value)
            except Misread as misread:
                self._add(event, str(misread))
        if is_key and top is not None:
            self._key(event, top, value)
        else:
            loc = self._place(event, value)
            if event.implicit[0] and not isinstance(value, str):
                self.words[loc] = event.value

    def _key(self, event: yaml.ScalarEvent, top: _Frame, value: Any) -> None:
        loc = (*top.loc, event.value)
        top.key = event.value
        if event.value == "<<" and event.implicit[0]:
            self._add(event, "'<<' is a merge key", "no merge keys", "write the values out")
            top.skip = True
        elif not isinstance(value, str):
            read = "null" if value is None else str(value).lower()
            self._add(event, f"YAML reads the key {event.value or '(empty)'} as {read}", "keys are words", "quote it")
            top.skip = True
        elif loc in self.keys:
            line, _ = self.keys[loc]
            self._add(event, f"the key '{event.value}' is written twice", f"first on line {line}", "remove one")
            top.skip = True
        else:
            self.keys[loc] = _position(event)

    def _place(self, event: yaml.Event, value: Any, is_word: bool = False) -> Loc:
        """Put a value where it belongs and return its location."""
        if not self.stack:
            self.documents.append(value)
            if len(self.documents) == 1:
                self.values[()] = _position(event)
            return ()
        top = self.stack[-1]
        if isinstance(top.box, list):
            loc: Loc = (*top.loc, len(top.box))
            top.box.append(value)
        elif top.key is None and is_word:  # an alias in the place of a key
            top.key, top.skip = "", True
            return (*top.loc, "")
        else:
            loc = (*top.loc, top.key or "")
            if not top.skip:
                top.box[top.key or ""] = value
            top.key, top.skip = None, False
        self.values.setdefault(loc, _position(event))
        return loc


class _TooDeep(Exception):
    """Stops the reading of a document whose nesting no honest file has."""


def _position(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    assert mark is not None, "the parser marks every event"
    return mark.line + 1, mark.column + 1


def _syntax(name: str, text: str, error: yaml.YAMLError) -> Mistake:
    """Turn the parser's complaint into one that says what to do."""
    if isinstance(error, yaml.reader.ReaderError):
        before = text.encode()[: error.position].decode(errors="ignore")
        where = f"{name}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        return Mistake(where, "a control character", "printable text", "remove it")
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else name
    problem = str(getattr(error, "problem", None) or error)
    line = text.splitlines()[mark.line] if mark is not None and mark.line < len(text.splitlines()) else ""
    if "\t" in line[: (mark.column + 1 if mark is not None else 0)] or "'\\t'" in problem:
        return Mistake(where, "a tab", "YAML indents with spaces", "replace the tab by spaces")
    return Mistake(where, f"this is not YAML: {problem}", todo="check quotes, colons, brackets and indentation here")
