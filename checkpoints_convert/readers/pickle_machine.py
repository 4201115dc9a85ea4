"""A small pickle machine that builds plain data and runs nothing.

Python's own unpickler imports and calls whatever a file names. This one knows the opcodes of protocols 0 to
5 that checkpoints use, and a list of names (`pickle_globals.py`). A name on the list stands for a
function of ours that returns plain data; nothing that a file names is ever imported. Every other name is
refused when it is met, before anything else happens with it.

Bounds: every opcode costs one step of a `Budget`; a declared length is compared with what is left before
anything is read; long bytes stay views of the file; texts, numbers, nesting and keys are limited; and a
module's source text (`module_src`) is skipped, never decoded.
"""

import struct
from collections.abc import Callable
from typing import Any

from checkpoints_convert.readers.faults import OFFICIAL, Fault, shown
from checkpoints_convert.readers.pickle_globals import Environment, Global, Unfinished, build, known

_TEXT = 2**16  # bytes of a text; keys, class names and settings are far shorter
_LINE = 512  # bytes of a line of protocol 0
_INTEGER = 64  # bytes of an integer; the longest that torch writes has 10
_MARKS = 200  # containers that are open at the same time
_SOURCE = "module_src"


class Machine:
    """Reads one pickle.

    Attributes:
        position: the first byte that was not read; after `run`, the byte after the pickle.
    """

    def __init__(self, data: memoryview, environment: Environment, position: int = 0):
        """A machine over `data` from `position`."""
        self.data = data
        self.environment = environment
        self.position = position
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object that the pickle describes, as plain data.

        Raises:
            Fault: the pickle is damaged, too large, or asks for a name that is not on the list.
        """
        try:
            while (opcode := self.byte()) != _STOP:
                self.environment.budget.spend()
                if (operation := _OPERATIONS.get(opcode)) is None:
                    raise Fault(f"expected an opcode of a checkpoint's pickle, got byte 0x{opcode:02x}")
                operation(self)
            if self.marks or len(self.stack) != 1:
                raise Fault("expected one object in the pickle, but it ends with another number of them")
            return self.stack.pop()
        except IndexError:
            raise Fault("the pickle takes more from its stack than it has put there") from None

    def byte(self) -> int:
        if self.position >= len(self.data):
            raise Fault(f"the file ends inside a pickle, after {len(self.data)} bytes")
        value = self.data[self.position]
        self.position += 1
        return value

    def take(self, count: int) -> memoryview:
        """The next `count` bytes, a view."""
        left = len(self.data) - self.position
        if not 0 <= count <= left:
            raise Fault(f"the pickle declares a value of {count} bytes, but {left} are left")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, width: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "little", signed=signed)

    def line(self) -> str:
        """A line of protocol 0, which has only short ASCII ones."""
        rest = bytes(self.data[self.position : self.position + _LINE])
        end = rest.find(b"\n")
        if end < 0 or not rest[:end].isascii():
            raise Fault(f"expected a line of at most {_LINE} ASCII characters in the pickle")
        self.position += end + 1
        return rest[:end].decode("ascii")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        if len(self.marks) >= _MARKS:
            raise Fault(f"expected at most {_MARKS} nested containers, got more", OFFICIAL)
        self.marks.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Any]:
        """Everything since the last mark, which is removed."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def text(self, width: int) -> None:
        data = self.take(self.number(width))
        if self.stack and type(self.stack[-1]) is str and self.stack[-1] == _SOURCE:
            self.push(None)
            return
        if len(data) > _TEXT:
            raise Fault(f"expected texts of at most {_TEXT} bytes, got one of {len(data)}")
        try:
            self.push(str(data, "utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            raise Fault(f"expected a text, got the bytes {shown(bytes(data[:20]))}") from None

    def raw(self, width: int) -> None:
        data = self.take(self.number(width))
        self.push(bytes(data) if width == 1 else data)

    def long(self, width: int) -> None:
        count = self.number(width, signed=width == 4)
        if count > _INTEGER:
            raise Fault(f"expected integers of at most {_INTEGER} bytes, got one of {count}")
        self.push(self.number(count, signed=True))

    def decimal(self) -> None:
        word = self.line().removesuffix("L")
        if word in ("00", "01"):
            self.push(word == "01")
        elif len(word) <= 20 and word.lstrip("-").isdecimal() and word.count("-") == word.startswith("-"):
            self.push(int(word))
        else:
            raise Fault(f"expected a decimal number in the pickle, got {shown(word)}")

    def decimal_float(self) -> None:
        word = self.line()
        try:
            self.push(float(word))
        except ValueError:
            raise Fault(f"expected a decimal number in the pickle, got {shown(word)}") from None

    def quoted(self, *, quotes: bool) -> None:
        word = self.line()
        if "\\" in word or (quotes and (len(word) < 2 or word[0] not in "'\"" or word[0] != word[-1])):
            raise Fault(f"expected a plain text in the pickle, got {shown(word)}")
        self.push(word[1:-1] if quotes else word)

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise Fault(f"expected a list to append to, got {shown(target)}")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise Fault(f"expected a dictionary and pairs to put into it, got {shown(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def dictionary(self, items: list[Any]) -> None:
        self.push({})
        self.set_items(items)

    def add_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not set:
            raise Fault(f"expected a set to add to, got {shown(target)}")
        target.update(map(_key, items))

    def put(self, index: int) -> None:
        """Remembers the top of the stack; as the memo is a dictionary, a huge index costs nothing."""
        value = self.memo[index] = self.stack[-1]
        if type(value) is Unfinished:
            value.places.append(index)

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise Fault(f"the pickle asks for its object number {index}, which it has not made")
        self.push(self.memo[index])

    def index(self) -> int:
        """A memo index in decimal."""
        self.decimal()
        return int(self.stack.pop())

    def named(self, module: Any, name: Any) -> None:
        self.push(known(module, name))

    def stack_named(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.named(module, name)

    def instance(self) -> None:
        """Opcodes of protocol 0 that call a class: the name is refused, or the opcode is."""
        self.named(self.line(), self.line())
        raise Fault("expected no opcode of Python 2's classes in a checkpoint")

    def call(self, *, new: bool) -> None:
        """The plain data that stands for calling a name; NEWOBJ (`new`) only where checkpoints use it."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Global or type(arguments) is not tuple:
            raise Fault("expected a known name to call with arguments", OFFICIAL)
        if function.function is None or (new and not function.new):
            raise Fault(f"expected a pickle that does not call {function.name}", OFFICIAL)
        self.push(function.function(arguments, self.environment))

    def attributes(self) -> None:
        """Gives the object below the top its attributes, which may finish it into another object."""
        state, target = self.stack.pop(), self.stack.pop()
        finished = build(target, state)
        if type(target) is Unfinished:
            for index in target.places:
                if self.memo[index] is target:
                    self.memo[index] = finished
        self.push(finished)

    def persistent_id(self) -> None:
        if self.environment.persistent is None:
            raise Fault("expected a pickle without references to storages outside of it")
        self.push(self.environment.persistent(self.stack.pop()))

    def protocol(self) -> None:
        if (version := self.byte()) > 5:
            raise Fault(f"expected a pickle of protocol 0 to 5, got {version}")

    def frame(self) -> None:
        length, left = self.number(8), len(self.data) - self.position
        if length > left:
            raise Fault(f"the pickle declares a frame of {length} bytes, but {left} are left")


def _key(key: Any) -> str | int:
    """Only texts and plain integers are hashed: hashing nested tuples can take forever."""
    if type(key) not in (str, int) or (type(key) is int and abs(key) >= 2**63):
        raise Fault(f"expected texts and integers as keys, got {shown(key)}")
    return key


_STOP = ord(".")
_OPERATIONS: dict[int, Callable[[Machine], Any]] = {
    ord(opcode): operation
    for opcode, operation in {
        b"\x80": Machine.protocol,
        b"\x95": Machine.frame,
        b"N": lambda m: m.push(None),
        b"\x88": lambda m: m.push(True),
        b"\x89": lambda m: m.push(False),
        b"K": lambda m: m.push(m.byte()),
        b"M": lambda m: m.push(m.number(2)),
        b"J": lambda m: m.push(m.number(4, signed=True)),
        b"\x8a": lambda m: m.long(1),
        b"\x8b": lambda m: m.long(4),
        b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
        b"I": Machine.decimal,
        b"L": Machine.decimal,
        b"F": Machine.decimal_float,
        b"S": lambda m: m.quoted(quotes=True),
        b"V": lambda m: m.quoted(quotes=False),
        b"U": lambda m: m.text(1),
        b"T": lambda m: m.text(4),
        b"\x8c": lambda m: m.text(1),
        b"X": lambda m: m.text(4),
        b"\x8d": lambda m: m.text(8),
        b"C": lambda m: m.raw(1),
        b"B": lambda m: m.raw(4),
        b"\x8e": lambda m: m.raw(8),
        b")": lambda m: m.push(()),
        b"]": lambda m: m.push([]),
        b"}": lambda m: m.push({}),
        b"\x8f": lambda m: m.push(set()),
        b"(": Machine.mark,
        b"t": lambda m: m.push(tuple(m.to_mark())),
        b"l": lambda m: m.push(m.to_mark()),
        b"d": lambda m: m.dictionary(m.to_mark()),
        b"\x85": lambda m: m.push((m.stack.pop(),)),
        b"\x86": lambda m: m.push((m.stack.pop(), m.stack.pop())[::-1]),
        b"\x87": lambda m: m.push((m.stack.pop(), m.stack.pop(), m.stack.pop())[::-1]),
        b"a": lambda m: m.append([m.stack.pop()]),
        b"e": lambda m: m.append(m.to_mark()),
        b"s": lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
        b"u": lambda m: m.set_items(m.to_mark()),
        b"\x90": lambda m: m.add_items(m.to_mark()),
        b"0": lambda m: m.stack.pop() if m.stack else m.to_mark(),
        b"1": Machine.to_mark,
        b"2": lambda m: m.push(m.stack[-1]),
        b"p": lambda m: m.put(m.index()),
        b"q": lambda m: m.put(m.byte()),
        b"r": lambda m: m.put(m.number(4)),
        b"\x94": lambda m: m.put(len(m.memo)),
        b"g": lambda m: m.get(m.index()),
        b"h": lambda m: m.get(m.byte()),
        b"j": lambda m: m.get(m.number(4)),
        b"c": lambda m: m.named(m.line(), m.line()),
        b"\x93": Machine.stack_named,
        b"i": Machine.instance,
        b"R": lambda m: m.call(new=False),
        b"\x81": lambda m: m.call(new=True),
        b"b": Machine.attributes,
        b"Q": Machine.persistent_id,
    }.items()
}
