"""Configurations that come with the library are known by their names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import rlkit as rk
from rlkit.cli import main
from rlkit.shipped import names


def test_a_name_is_the_file_of_the_repository() -> None:
    here = {p.relative_to("configs").with_suffix("").as_posix() for p in Path("configs").rglob("*.yaml")}
    assert here | {f"examples/{p.stem}" for p in Path("examples").glob("*.yaml")} == set(names())
    assert rk.load("algorithms/grpo", ["steps=3"]) == rk.load("configs/algorithms/grpo.yaml", ["steps=3"])
    assert rk.load("math/qwen2.5-0.5b-gsm8k").name == rk.load("configs/math/qwen2.5-0.5b-gsm8k.yaml").name


def test_a_file_of_ones_own_comes_first_and_a_folder_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert rk.load("quickstart").steps == 150
    (tmp_path / "quickstart").rmdir()
    (tmp_path / "quickstart").write_text("extends: algorithms/grpo\nsteps: 7")
    assert rk.load("quickstart").steps == 7
    with pytest.raises(rk.ConfigError, match=r"quickstrat: there is no such file, .* Did you mean quickstart\?"):
        rk.load("quickstrat")


def test_what_is_printed_is_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("quickstart", "algorithms/grpo", "math/qwen2.5-7b-rpg"):
        (tmp_path / "mine.yaml").write_text(rk.print_config(name))
        assert rk.load(tmp_path / "mine.yaml") == rk.load(name)
    assert rk.print_config("examples/custom_loss.py") == Path("examples/custom_loss.py").read_text()
    with pytest.raises(rk.ConfigError, match="no configuration is named 'nothing'"):
        rk.print_config("nothing")


def test_the_list_says_what_each_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in names()) and "GRPO (2402.03300, eq. 3)" in said
    assert main(["configs", "quickstart"]) == 0
    assert capsys.readouterr().out == Path("configs/quickstart.yaml").read_text()


@pytest.mark.slow
def test_a_new_project_passes_its_own_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "mine")]) == 0
    assert f"cd {tmp_path / 'mine'} && rlkit train train.yaml" in capsys.readouterr().out
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path / "mine",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout
    with pytest.raises(rk.ConfigError, match="exists already"):
        rk.init(tmp_path / "mine")


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"rlkit {rk.__version__}\n"
