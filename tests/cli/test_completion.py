"""What a shell offers."""

from __future__ import annotations

import subprocess

import pytest

from rlkit.cli import main
from rlkit.cli.commands import COMMANDS


def offered(*words: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """What bash completes the last of these words to."""
    assert main(["completion", "bash"]) == 0
    call = f"COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}; _rlkit; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", capsys.readouterr().out + call], capture_output=True, text=True, cwd="configs")
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_completes_commands_options_names_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert offered("rlkit", "tr", capsys=capsys) == {"train"}
    assert offered("rlkit", "", capsys=capsys) >= {c.name for c in COMMANDS}
    assert offered("rlkit", "train", "--re", capsys=capsys) == {"--resume"}
    assert offered("rlkit", "train", "quick", capsys=capsys) == {"quickstart", "quickstart.yaml"}
    assert offered("rlkit", "completion", "quick", capsys=capsys) == {"quickstart.yaml"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert all(c.name in said for c in COMMANDS) and "--resume" in said and "algorithms/grpo" in said
