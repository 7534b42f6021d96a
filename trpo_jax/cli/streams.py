"""What becomes of printed text that nobody reads any more."""

import os
import sys
from collections.abc import Callable
from io import TextIOBase
from typing import Any


class Lasting:
    """A stream that drops its text once it cannot be written, and goes on as if it were read.

    The reader is gone (`| head -1`, a closed terminal), or the disk of its file is full.
    """

    def __init__(self, stream: TextIOBase):
        """Takes the place of a stream."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes text, or drops it."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Hands on what was written."""
        self._try(self._stream.flush)

    def _try(self, function: Callable[..., Any], *arguments: str) -> None:
        try:
            function(*arguments)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is buffered goes there too
            os.close(nowhere)


def outlive_readers() -> None:
    """Lets this process do all its work, and write its files, also where nobody reads its text."""
    sys.stdout, sys.stderr = (
        stream if stream is None or isinstance(stream, Lasting) else Lasting(stream)
        for stream in (sys.stdout, sys.stderr)
    )
