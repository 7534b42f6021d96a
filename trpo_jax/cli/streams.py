"""Output streams that do not fail when nobody reads them."""

import os
import sys
from collections.abc import Callable
from io import TextIOBase
from typing import Any


class Lasting:
    """A stream that drops its text after a write has failed, instead of raising an error.

    A write fails if the reader is gone (`| head -1`, a closed terminal) or if the disk is full.
    """

    def __init__(self, stream: TextIOBase):
        """Wraps a stream."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes text, or drops it."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, or drops its text."""
        self._try(self._stream.flush)

    def _try(self, function: Callable[..., Any], *arguments: str) -> None:
        try:
            function(*arguments)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # also drops the text in the buffer
            os.close(nowhere)


def outlive_readers() -> None:
    """Lets this process finish its work and write its files, even if nobody reads its output."""
    sys.stdout, sys.stderr = (
        stream if stream is None or isinstance(stream, Lasting) else Lasting(stream)
        for stream in (sys.stdout, sys.stderr)
    )
