"""Finds the operations with which devices communicate, in the text of a compiled program."""

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
# An asynchronous operation has two lines. The `-done` line has the shapes of its result only.
_LINE = re.compile(rf"= (?P<shapes>.*?) (?P<kind>{'|'.join(KINDS)})(-done)?\(")
_SHAPE = re.compile(r"(?P<kind>[a-z]+)(?P<bits>\d*)\[(?P<lengths>[\d,]*)\]")
_SOURCE = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """One operation of all devices together. It may run many times.

    Attributes:
        kind: one of `KINDS`.
        num_bytes: size of the result on each device.
        source: name of the operation in the traced program.
    """

    kind: str
    num_bytes: int
    source: str


def collectives(text: str) -> list[Collective]:
    """Returns the collective operations of a compiled program, in the order of its text."""
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
