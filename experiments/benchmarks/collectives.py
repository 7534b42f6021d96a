"""What devices say to each other in a compiled program, read from its text."""

import math
import re
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "reduce-scatter",
    "ragged-all-to-all",
)
# Of an operation that is started and awaited, the latter has what it gives and nothing else.
_LINE = re.compile(rf"= (?P<shapes>.*?) (?P<kind>{'|'.join(KINDS)})(-done)?\(")
_SHAPE = re.compile(r"(?P<kind>[a-z]+)(?P<bits>\d*)\[(?P<lengths>[\d,]*)\]")
_SOURCE = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """One operation of all devices together, which may run many times.

    Attributes:
        kind: one of `KINDS`.
        num_bytes: size of what each device has of it in the end.
        source: where it comes from in the traced program.
    """

    kind: str
    num_bytes: int
    source: str


def collectives(text: str) -> list[Collective]:
    """Returns the collective operations in the text of a compiled program, in its order."""
    found = []
    for line in text.splitlines():
        match = _LINE.search(line)
        if match:
            sizes = [_num_bytes(shape) for shape in _SHAPE.finditer(match["shapes"])]
            source = _SOURCE.search(line)
            found.append(Collective(match["kind"], sum(sizes), source[1] if source else ""))
    return found


def _num_bytes(shape: re.Match) -> int:
    lengths = [int(x) for x in shape["lengths"].split(",") if x]
    return math.prod(lengths) * (int(shape["bits"] or 8) + 7 >> 3)
