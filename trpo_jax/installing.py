"""Commands that install missing packages, in the way the user installed this package."""

import re
import shlex
import shutil
import sys
import tomllib
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]  # folder of the repository, if the package runs from there
NAME = "trpo_jax"


def how_to_install(extra: str) -> str:
    """Returns the command that installs an extra of this package.

    If uv made the environment of this Python for the repository, the command is `uv sync`.
    Otherwise it is `pip install`. If this Python has no pip, it is `uv pip install`. In a notebook,
    the command is a line for a cell. The command names the requirements of the extra, because the
    package itself may be in no package index.
    """
    ipython = sys.modules.get("IPython")
    in_notebook = ipython is not None and ipython.get_ipython() is not None
    uv = "uv" if shutil.which("uv") else "python3 -m uv"
    shell = "!" if in_notebook else ""
    if _is_uv_project():
        inside = Path.cwd().is_relative_to(CHECKOUT)
        project = "" if inside else f" --project {shlex.quote(str(CHECKOUT))}"
        # Without --inexact, uv would remove the other extras.
        return f"{shell}{uv} sync --inexact{project} --extra {extra}"
    packages = shlex.join(requirements(extra))
    if find_spec("pip") is None:
        python = shlex.quote(sys.executable)
        return f"{shell}{uv} pip install --python {python} {packages}"
    return f"%pip install {packages}" if in_notebook else f"{_python()} -m pip install {packages}"


def requirements(extra: str) -> list[str]:
    """Returns the requirements of an extra of this package, without their markers."""
    settings = _settings()
    if settings:
        lines = settings["optional-dependencies"][extra]
    else:
        of_extra = re.compile(rf"extra == ['\"]{extra}['\"]")
        lines = [line for line in requires(NAME) or () if of_extra.search(line)]
    return [line.partition(";")[0].strip() for line in lines]


def _settings() -> dict | None:
    """Returns the section `project` of pyproject.toml. None if this is not the repository."""
    file = CHECKOUT / "pyproject.toml"
    project = tomllib.loads(file.read_text()).get("project", {}) if file.is_file() else {}
    return project if project.get("name") == NAME else None


def _is_uv_project() -> bool:
    """Returns whether uv made the environment of this Python for the repository."""
    file = Path(sys.prefix, "pyvenv.cfg")
    made_by_uv = file.is_file() and re.search(r"^uv = ", file.read_text(), re.MULTILINE)
    return bool(_settings() and made_by_uv and Path(sys.prefix).is_relative_to(CHECKOUT))


def _python() -> str:
    """Returns the command that starts this Python."""
    folder = Path(sys.executable).parent
    for word in ("python", "python3"):
        if Path(shutil.which(word) or "").parent == folder:
            return word
    return shlex.quote(sys.executable)
