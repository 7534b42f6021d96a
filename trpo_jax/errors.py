"""Errors whose messages are for the user."""

import difflib
from collections.abc import Iterable

LISTED = 80  # most names that a message lists
RAISED = (Exception, SystemExit)  # errors of an environment; Ctrl-C comes from the user


def counted(number: int, noun: str) -> str:
    """Returns a number and its noun, as messages print them.

    Examples:
        >>> counted(1, "seed"), counted(2_000, "step")
        ('1 seed', '2,000 steps')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


class ConfigurationError(ValueError):
    """A setting that cannot work. The message says what is wrong, what is allowed, what to do."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigurationError:
    """Returns the error for a `name` of a `kind` that is not one of the `known` names.

    The message starts with the nearest known names, so that the user can see a typing mistake. If
    more than `LISTED` names are known, the message does not list all of them.
    """
    known = sorted(known)
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.4)
    nearest = f" Did you mean {' or '.join(by_lower[match] for match in close)}?" if close else ""
    listed = f"Known: {', '.join(known)}." if len(known) <= LISTED else f"{len(known):,} are known."
    listed = listed if known else "Known: none."
    return ConfigurationError(f"Unknown {kind} {name!r}.{nearest} {listed}")


def require_known_environment(suite: str, name: str, known: Iterable[str]) -> str:
    """Returns "suite/name", the full name of an environment.

    Raises:
        ConfigurationError: if `name` is not one of the `known` names of the suite.
    """
    known = set(known)
    if name not in known:
        raise unknown_name("environment", f"{suite}/{name}", (f"{suite}/{x}" for x in known))
    return f"{suite}/{name}"


class EnvironmentFailure(RuntimeError):
    """An environment that raised an error, died or returned wrong values."""


def environment_failure(name: str, error: BaseException, where: str = "") -> EnvironmentFailure:
    """Returns the `EnvironmentFailure` for an error that an environment raised.

    Args:
        name: name of the environment.
        error: the error.
        where: the end of the message, such as the number of the copy.
    """
    reason = " ".join(str(error).split())
    if isinstance(error, Unpromised):
        return EnvironmentFailure(f"Environment {name} returned {reason}{where}.")
    if isinstance(error, SystemExit):
        reason = f"it called sys.exit({error.code!r})"
    elif isinstance(error, EOFError | ConnectionError):  # the pipe to its process is closed
        reason = f"one of its processes died, or it lost a connection ({reason})"
    else:
        reason = f"{type(error).__name__}: {reason}".rstrip(": ")
    return EnvironmentFailure(f"Environment {name} failed: {reason}{where}.")


class NotFinite(EnvironmentFailure):
    """An environment that returned numbers that are not finite, or absurdly large."""


class Unpromised(ValueError):
    """An environment returned a value that its space does not allow.

    The message describes the value, and what the space promises instead.
    """


class MemoryFailure(RuntimeError):
    """There was not enough memory."""


class StorageFailure(OSError):
    """A file could not be written or read back, for instance because the disk is full."""


class FileGone(StorageFailure):
    """A file of a run was moved or removed while the run wrote to it."""


class PeerFailure(RuntimeError):
    """Another process of the same run ended, or cannot be reached."""
