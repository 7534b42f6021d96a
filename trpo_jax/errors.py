"""Errors meant for the person at the keyboard."""

import difflib
from collections.abc import Iterable

LISTED = 80  # names in a message
RAISED = (Exception, SystemExit)  # by an environment; Ctrl-C is the user's


class ConfigurationError(ValueError):
    """A setting that cannot work: the message says what is wrong, what is allowed, what to do."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigurationError:
    """Returns the error for a `name` that is not among the `known` ones of its `kind`.

    The message leads with the nearest known names, so that a typing mistake can be seen at once;
    of very many, it lists no others.
    """
    known = sorted(known)
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.4)
    nearest = f" Did you mean {' or '.join(by_lower[match] for match in close)}?" if close else ""
    listed = f"Known: {', '.join(known)}." if len(known) <= LISTED else f"{len(known):,} are known."
    listed = listed if known else "None is known."
    return ConfigurationError(f"Unknown {kind} {name!r}.{nearest} {listed}")


def require_known_environment(suite: str, name: str, known: Iterable[str]) -> str:
    """Returns "suite/name", the name of an environment here.

    Raises:
        ConfigurationError: if the suite's own `name` is not among the `known` ones.
    """
    known = set(known)
    if name not in known:
        raise unknown_name("environment", f"{suite}/{name}", (f"{suite}/{x}" for x in known))
    return f"{suite}/{name}"


class EnvironmentFailure(RuntimeError):
    """An environment that raised, died or returned what is no number; its cause is attached."""


def environment_failure(name: str, error: BaseException, where: str = "") -> EnvironmentFailure:
    """Returns the failure of the environment of that name, for whatever it raised."""
    reason = " ".join(str(error).split())
    if isinstance(error, Unpromised):
        return EnvironmentFailure(f"Environment {name} returned {reason}{where}.")
    if isinstance(error, SystemExit):
        reason = f"it called sys.exit({error.code!r})"
    elif isinstance(error, EOFError | ConnectionError):  # what is left of a pipe to it
        reason = f"one of its processes died, or a connection of its own ({reason})"
    else:
        reason = f"{type(error).__name__}: {reason}".rstrip(": ")
    return EnvironmentFailure(f"Environment {name} failed: {reason}{where}.")


class NotFinite(EnvironmentFailure):
    """An environment whose numbers are not finite, or absurdly large."""


class Unpromised(ValueError):
    """What an environment returned, in words, and what its space promises in its place."""


class MemoryFailure(RuntimeError):
    """Something that memory had no room for."""


class StorageFailure(OSError):
    """Something that could not be written or read back, on a full disk for instance."""


class FileGone(StorageFailure):
    """A file of a run that was moved or removed while the run wrote to it."""


class PeerFailure(RuntimeError):
    """Another process of the same run that ended, or cannot be reached any more."""
