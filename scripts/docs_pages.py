"""Pages of the site that are written elsewhere: READMEs beside configurations and benchmarks, the keys of `grok fit`.

A hook of mkdocs. Links to files that are no pages become plain names, as the site may be read without the repository.
"""

from __future__ import annotations

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


class _Found(Exception):
    """Carries the parser of `grok fit`."""


def _keys() -> str:
    """Every key that `grok fit` takes: type, default and meaning, as its parser has them from the docstrings."""
    from grok.lightning_cli import GrokCLI, run_lightning

    class Looked(GrokCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise _Found(self._subcommand_parsers["fit"])

    try:
        run_lightning(["fit"], Looked)
    except _Found as found:
        groups = found.args[0]._action_groups
    sections: dict[str, list[str]] = {}
    titles: dict[str, str] = {}
    for group in groups:
        for action in group._group_actions:
            if (
                hasattr(action, "_typehint")
                and not action.dest.endswith(".help")
                and "link" not in str(group.title).lower()
            ):
                first = action.dest.partition(".")[0] if "." in action.dest or action.dest == "data" else "The run"
                titles.setdefault(first, f"`{first}`: {group.title}" if first != "The run" else first)
                sections.setdefault(first, []).append(_key(action))
    tables = [
        "\n".join([f"## {titles[first]}", "", "| key | type | default | |", "|---|---|---|---|", *rows])
        for first, rows in sections.items()
    ]
    return "\n\n".join([_KEYS, *tables]) + "\n"


_KEYS = """# Keys of a configuration

Every key of a YAML file and, with `--` before it, of the command line: what `grok fit --help` says. Nested keys are
joined by dots. A key that takes a class (`model.net`, `data`, …) takes `class_path` and `init_args`, or on the command
line the class and `--data.KEY`; the arguments of the classes are in the reference of [data](reference/data.md),
[models](reference/models.md) and [training](reference/training.md)."""


def _key(action: Any) -> str:
    """A line of the table: key, type, default and meaning."""
    type_ = action._typehint.__name__ if isinstance(action._typehint, type) else str(action._typehint)
    short = re.sub(r"\b(?:\w+\.)+(?=[A-Za-z])", "", type_)
    default = action.default.get("class_path") if isinstance(action.default, dict) else action.default
    one_of = re.match(r"Conditional<[^>]*> \{([^,]+),", str(default))
    shown = {"None": "null", "True": "true", "False": "false"}
    spelled = one_of[1] if one_of else str(default)
    told = " ".join(str(action.help).replace("``", "`").split())
    cells = (f"`{action.dest}`", f"`{short}`", f"`{shown.get(spelled, spelled)}`", told)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
