"""Every command of the README runs, and its Python too; the long ones for two steps."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


SHORTER = {("sweep", "plan"): ["--set", "trainer.max_steps=2"], ("sweep", "run"): ["--only", "3"]}
COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("grok ")]


@pytest.mark.slow
def test_every_grok_command_runs(grok, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    assert len(COMMANDS) >= 6
    for command in COMMANDS:
        arguments = shlex.split(command, comments=True)[1:]
        if arguments[0] == "fit" and "--help" not in arguments:
            arguments += ["--trainer.max_steps", "2"]
        arguments += SHORTER.get(tuple(arguments[:2]), [])
        status, _, errors = grok(*arguments)
        assert (status, errors) == (0, ""), command


def test_the_scripts_it_names_exist_and_are_executable():
    for script in re.findall(r"^\./(scripts/\w+)", "\n".join(blocks("sh")), re.MULTILINE):
        assert (ROOT / script).stat().st_mode & 0o111, script
        subprocess.run(["sh", "-n", str(ROOT / script)], check=True)


@pytest.mark.parametrize("code", blocks("python"))
def test_its_python_runs(code):
    scope: dict[str, object] = {}
    exec(code, scope)
    assert scope["states"][-1]["resid"].shape[0] == len(scope["bridge"])
