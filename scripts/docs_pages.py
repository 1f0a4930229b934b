"""Pages of the site that are written elsewhere: READMEs beside configurations and benchmarks, the keys of `grok fit`.

A hook of mkdocs. Links to files that are no pages become plain names, as the site may be read without the repository.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "configurations.md": "configs/README.md", "speed.md": "scripts/benchmark/README.md", "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}  # fmt: skip
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "keys.md", content=_keys()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Make every link one within the site, or a plain name."""
    here = page.file.src_uri
    source = ELSEWHERE.get(here, f"docs/{here}")
    return _LINK.sub(lambda match: _link(match, here, source, files), markdown)


def _link(match: re.Match[str], here: str, source: str, files: Files) -> str:
    picture, text, target, anchor = match.groups()
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    known = {file: page for page, file in ELSEWHERE.items()}
    inside = known.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
    if inside is not None and files.get_file_from_path(inside) is not None:
        return f"{picture}[{text}]({posixpath.relpath(inside, posixpath.dirname(here) or '.')}{anchor or ''})"
    if not (ROOT / path).exists():
        raise SystemExit(f"{source}: links to {target}, which does not exist")
    return text if text == path or "`" in text else f"{text} (`{path}`)"


def _keys() -> str:
    """`grok fit --help`, whose keys are generated from the docstrings."""
    import contextlib
    import io

    from grok.cli import main

    os.environ.setdefault("COLUMNS", "120")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        main(["fit", "--help"])
    return f"# Keys of a configuration\n\nWhat `grok fit --help` says.\n\n```text\n{said.getvalue()}\n```\n"
