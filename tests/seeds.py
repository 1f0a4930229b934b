"""Seeds of tests that take minutes for each: one, or as many as the environment says (`SEEDS=3 pytest -m slow`)."""

import os

SEEDS = range(int(os.environ.get("SEEDS", "1")))
