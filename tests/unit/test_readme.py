"""README: what everybody reads first stays short, and its two commands are complete."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_has_two_screens_and_begins_with_a_moving_picture():
    assert len(README.split()) <= 900
    picture = re.search(r"^!\[[^\]]+\]\(([^)]+)\)$", README, re.MULTILINE)
    assert picture and len(README[: picture.start()].split()) < 60
    assert picture[1].endswith(".gif") and (ROOT / picture[1]).exists()


def test_the_commands_make_their_own_environment():
    commands = re.findall(r"```bash\n(python3 -m venv .*)\n```", README)
    assert len(commands) == 2
    assert all("-c constraints.txt" in command for command in commands)
