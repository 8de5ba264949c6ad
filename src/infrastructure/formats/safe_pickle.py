"""Pickles read without executing them.

A pickle is a program for a machine with a stack, and Python's own machine imports and calls whatever the program names.
This one knows no import and no call. It keeps the plain values, and of a global nothing but its name: an object is the
name of its class and its state, both for the reader to judge, and a name that the reader has not allowed ends the reading.
Only Python's tokens of the language, pickletools.genops, are used; what each means is in the library's pickletools.py.
"""

import pickletools
import warnings
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST = 2**26
"""Bytes; no tokenizer is that large."""
BUILDING = frozenset(
    {"copyreg._reconstructor", "copyreg.__newobj__", "builtins.object", "builtins.bytes", "_codecs.encode"}
)
"""What pickles of the older protocols name to make an object and to spell bytes. Their effect is known here, as words."""
_PYTHON_2 = {"copy_reg": "copyreg", "__builtin__": "builtins"}
_DAMAGED = "it is damaged, or no pickle"


@dataclass(frozen=True)
class Named:
    """A global, of which there is only its name."""

    name: str


@dataclass
class Made:
    """An object of a class that was never imported: its name, and the state that it would have been given."""

    name: str
    state: Any = None


def read_pickle(path: Path, allowed: Set[str] = frozenset()) -> Any:
    """What a pickle describes: None, bool, int, str, bytes, tuple, list, dict, and Named and Made of the allowed names.

    Keys of a dict are int, str or bytes. Raises OSError, and ValueError that says what else the file has or lacks.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has {path.stat().st_size:,} bytes, and at most {LARGEST:,} are read")
    machine = _Machine(allowed, path.stat().st_size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in a damaged text
            for opcode, argument, _ in pickletools.genops(path.read_bytes()):
                machine.step(opcode.name, argument)
        return machine.result()
    except (IndexError, KeyError, TypeError, OverflowError):
        raise ValueError(_DAMAGED) from None


class _Machine:
    """The stack and the memory of a pickle's program."""

    def __init__(self, allowed: Set[str], size: int) -> None:
        self.allowed = allowed
        self.room = size
        """Bytes that may yet be made of text: the same text, encoded again and again, must not fill the memory."""
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        """What was on the stack at each mark."""
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """One instruction. Raises ValueError for one that plain values do not need."""
        if name not in _STEPS:
            of = "" if argument is None else f" of {argument!r:.100}"
            raise ValueError(f"its instruction {name}{of} is for other things than plain values")
        _STEPS[name](self, argument)

    def result(self) -> Any:
        """What is left at the end."""
        if len(self.stack) != 1 or self.below:
            raise ValueError(_DAMAGED)
        return self.stack[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def drop(self) -> None:
        self.stack.pop()

    def marked(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def remember(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"it would change a {type(self.stack[-1]).__name__} as if it were a {kind.__name__}")
        return self.stack[-1]

    def extend(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        filled = self.top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (int, str, bytes):  # to hash nested tuples may take for ever
                raise ValueError(f"a {type(key).__name__} is the key of a dict")
            filled[key] = value

    def find(self, module: Any, name: Any) -> None:
        """A global becomes its name, if that is allowed."""
        if type(module) is not str or type(name) is not str:
            raise ValueError(_DAMAGED)
        found = f"{_PYTHON_2.get(module, module)}.{name}"
        if found not in self.allowed:
            raise ValueError(f"it would import {found[:100]!r}")
        self.push(Named(found))

    def call(self, function: Any, arguments: Any) -> None:
        """What the few known functions would give."""
        name = function.name if type(function) is Named else type(function).__name__
        match name, arguments:
            case "_codecs.encode", (str(text), "latin1"):
                self.room -= len(text)
                if self.room < 0:
                    raise ValueError("it makes more bytes than it holds")
                self.push(text.encode("latin-1"))
            case "builtins.bytes", ():
                self.push(b"")
            case "copyreg._reconstructor", (kind, Named("builtins.object"), None):
                self.make(kind, ())
            case "copyreg.__newobj__", (kind,):
                self.make(kind, ())
            case _:
                raise ValueError(f"it would call {name!r}")

    def make(self, kind: Any, arguments: Any, named: Any = None) -> None:
        """A new object of a class, which is given nothing but its state."""
        if type(kind) is not Named or kind.name in BUILDING or arguments != () or named not in (None, {}):
            raise ValueError(
                f"it would make a {kind.name if type(kind) is Named else type(kind).__name__} of something"
            )
        self.push(Made(kind.name))

    def build(self, state: Any) -> None:
        made = self.top(Made)
        if made.state is not None:
            raise ValueError(f"it gives a {made.name} two states")
        made.state = state


def _filled(machine: _Machine, empty: list[Any] | dict[Any, Any], fill: Callable[[list[Any]], None]) -> None:
    values = machine.marked()
    machine.push(empty)
    fill(values)


_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
    *("BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
)
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(_VALUES, lambda machine, value: machine.push(value)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, place: machine.remember(int(place))),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, place: machine.push(machine.memo[int(place)])),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "POP": lambda machine, _: machine.drop(),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.mark(),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: _filled(machine, [], machine.extend),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": lambda machine, _: _filled(machine, {}, machine.set_items),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "GLOBAL": lambda machine, names: machine.find(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.find(*machine.pop(2)),
    "REDUCE": lambda machine, _: machine.call(*machine.pop(2)),
    "NEWOBJ": lambda machine, _: machine.make(*machine.pop(2)),
    "NEWOBJ_EX": lambda machine, _: machine.make(*machine.pop(3)),
    "BUILD": lambda machine, _: machine.build(machine.pop(1)[0]),
}
