"""The `grok` commands on the pages are understood: their options, keys, values and classes exist.

Those that only name a configuration are tried with it (`test_configs.py`).
"""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(page for top in ("docs", "configs", "scripts") for page in (ROOT / top).rglob("*.md"))]
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
STOPS = (
    "grok.cli.verify_series",
    "grok.exchange._read",
    "grok.exchange.load_run",
    "grok.lightning_cli.GrokCLI.choose_checkpoint",
    "grok.report.page.command.load",
    "grok.sweep.command.Sweep.load",
    "grok.trace.TraceCLI.choose_checkpoint",
    "grok.verdict.command.Experiment.load",
)
"""What commands do first when they have understood their arguments and checked the configuration."""
FIXTURES = ROOT / "tests/data/fixtures"
STAND_INS = {
    "S": "0",
    "facts.csv": FIXTURES / "real_facts/facts.csv",
    "DIRECTORY": next((FIXTURES / "composition_json").glob("*0.5*")),
}


def commands(text):
    """Those in blocks, and of those in running text the ones that name a configuration, a run or a sweep."""
    blocks = "\n".join(FENCED.findall(text)).replace("\\\n", "")
    spans = re.findall(r"`(grok [^`…|]*(?:configs/|runs/|RUN|SWEEP)[^`…|]*)`", FENCED.sub("", text))
    return [shlex.split(one, comments=True)[1:] for one in (*re.findall(r"^\s*(grok .*)", blocks, re.M), *spans)]


COMMANDS = {shlex.join(one): page for page in sorted(PAGES) for one in commands(page.read_text())}


def understood(*_):
    raise SystemExit(0)


@pytest.mark.parametrize(
    "command", [one for one in COMMANDS if not re.fullmatch(r"(fit --config|sweep plan) \S+", one)]
)
def test_a_command_is_understood(grok, tmp_path, monkeypatch, command):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    arguments = [STAND_INS.get(word, word) for word in shlex.split(command)]
    if arguments[0] in ("test", "predict", "trace"):
        (run := tmp_path / arguments[1]).mkdir(parents=True)
        (run / "config.yaml").write_bytes((ROOT / "configs/quickstart.yaml").read_bytes())
    for name in STOPS:
        monkeypatch.setattr(name, understood)
    status, _, errors = grok(*arguments, *["--dry-run"] * (arguments[1] == "plan"))
    assert (status, errors) == (0, ""), f"{COMMANDS[command]}: grok {command}"


def test_there_are_commands_of_every_kind():
    kinds = {command.split(" ")[0] for command in COMMANDS}
    assert kinds >= {"fit", "test", "predict", "trace", "verify", "report", "sweep", "export", "verdict"}
