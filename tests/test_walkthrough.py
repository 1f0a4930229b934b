"""The walk-through clones a repository, runs what its page says in one shell, and tells what failed."""

import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/walkthrough"
PAGE = """
```sh
greeting="hello there"   # a comment
echo "$greeting," \\
    newcomer
grep nothing /dev/null
cat
tensorboard --logdir runs
grok trace RUN
touch skipped
```

```
touch output-of-a-command
```

```python
print(6 * 7)
```
"""


def walk(tmp_path, page, *options):
    """Exit status and output of a walk through a made-up repository."""
    (tmp_path / "README.md").write_text(page)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "--quiet"], ["add", "README.md"], ["commit", "--quiet", "--message", "page"]):
        subprocess.run([*git, *arguments], check=True)
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--into", str(tmp_path / "new"), *options]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as in an activated environment
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.stderr == ""
    return done.returncode, done.stdout


def outcomes(output):
    return re.findall(r"^\| \d+ \| `(.*)` \| ([\d.–]+) \| (.*) \|$", output, re.MULTILINE)


def test_every_command_is_run_in_one_shell_and_told_with_its_time(tmp_path):
    status, output = walk(tmp_path, PAGE, "--skip", "touch")
    assert status == 1
    assert [(command, outcome) for command, _, outcome in outcomes(output)] == [
        ("git clone", "done"),
        ('greeting="hello there"', "done"),
        ('echo "$greeting," newcomer', "done"),
        ("grep nothing /dev/null", "failed: 1"),
        ("cat", "done"),  # there is nothing to read, and not the commands that follow
        ("tensorboard --logdir runs", "skipped: serves until it is stopped"),
        ("grok trace RUN", "skipped: RUN stands for something of yours"),
        ("touch skipped", "skipped: --skip touch"),
        ("python: print(6 * 7) …", "done"),
    ]
    assert all((seconds == "–") == outcome.startswith("skipped") for _, seconds, outcome in outcomes(output))
    assert "\nhello there, newcomer\n" in output
    assert "\n42\n" in output
    assert re.search(r"^Total: \d+ s; .*/new$", output, re.MULTILINE)
    assert [path.name for path in (tmp_path / "new/clone").iterdir() if path.name != ".git"] == ["README.md"]


def test_nothing_is_tried_after_a_failed_set_up(tmp_path):
    status, output = walk(tmp_path, "```sh\nfalse\ntouch late\n```\n")
    assert (status, [outcome for *_, outcome in outcomes(output)]) == (1, ["done", "failed: 1"])
    assert not (tmp_path / "new/clone/late").exists()


def test_all_well_is_status_0_and_a_shell_that_ends_is_told(tmp_path):
    assert walk(tmp_path, "```sh\ntrue\n```\n")[0] == 0
    (tmp_path / "new").rename(tmp_path / "old")
    status, output = walk(tmp_path, "```sh\ntrue\nexit 3\ntrue\n```\n")
    assert status == 1
    assert outcomes(output)[-1][2] == "failed: 3"
    assert "the shell has ended" in output
