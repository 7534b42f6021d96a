"""Builds the site from the files of the repository as they are.

The README is the home page. Pages of `experiments/` and the notebooks are pages of the site, and
relative links between files of the repository become links between pages.
"""

import logging
import os
import posixpath
import re
import subprocess
from html import unescape
from pathlib import Path

import latex2mathml.converter
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

import trpo_jax

ROOT = Path(__file__).parents[1]
WARNINGS = logging.getLogger("mkdocs.hooks")  # a warning fails a strict build
PAGES = {"README.md": "index.md"}  # files of the repository that have another name on the site
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def site_name(path: str) -> str:
    """Returns the name on the site of a file of the repository."""
    path = re.sub(r"^docs/", "", PAGES.get(path, path))
    return re.sub(r"\.ipynb$", ".md", path)


def repository_name(name: str) -> str:
    """Returns the name in the repository of a page of the site."""
    if name in PAGES.values():
        return next(path for path, other in PAGES.items() if other == name)
    if name.startswith("notebooks/"):
        return name.replace(".md", ".ipynb")
    return name if (ROOT / name).exists() else f"docs/{name}"


def on_files(files, config):
    """Adds the files of the repository that lie outside of the folder `docs`."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "experiments", "notebooks", "*.md"]
    command += ["LICENSE", "CITATION.cff", "trpo_jax/running/defaults.toml"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in listed.split():
        if path.startswith(("docs/", ".github/")):
            continue
        if path.endswith(".ipynb"):
            add_notebook(files, config, path)
        elif path in PAGES:
            content = (ROOT / path).read_text(encoding="utf-8")
            files.append(File.generated(config, PAGES[path], content=content))
        else:
            files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def add_notebook(files, config, path: str) -> None:
    """Adds a notebook as a page, and its pictures as files."""
    body, resources = MarkdownExporter().from_filename(ROOT / path)
    folder = path.removesuffix(".ipynb")
    for name, content in resources["outputs"].items():
        body = body.replace(f"({name})", f"({posixpath.basename(folder)}-{name})")
        files.append(File.generated(config, f"{folder}-{name}", content=content))
    files.append(File.generated(config, f"{folder}.md", content=body))


def on_page_markdown(markdown, page, config, files):
    """Turns links between files of the repository into links between pages."""
    here = posixpath.dirname(repository_name(page.file.src_uri))

    def link(match: re.Match) -> str:
        target = site_name(posixpath.normpath(posixpath.join(here, match[1])))
        return os.path.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(link, markdown)


def on_page_content(html, page, config, files):
    """Turns formulas into MathML, which browsers show without a script."""

    def formula(match: re.Match) -> str:
        display = "block" if match[1] == "div" else "inline"
        return latex2mathml.converter.convert(unescape(match[2]), display=display)

    return FORMULA.sub(formula, html)


def on_env(env, config, files):
    """Warns of public names that the reference does not have."""
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/api").glob("*.md"))
    for name in trpo_jax.__all__:
        if not re.search(rf"^::: trpo_jax\.(algorithms\.)?{name}$", pages, re.MULTILINE):
            WARNINGS.warning("The reference lacks the public name trpo_jax.%s", name)
