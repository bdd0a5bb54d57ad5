"""The README is run: a command in it that does not work is a bug.

A code block after a line ``<!-- tested -->`` is executed, in a sandbox that looks like the clone,
in the order of the file and in one place, so that a block may use what one before it made. Blocks
after ``<!-- tested, slow -->`` join in when the slow tests run. Every other command is still
checked for the names it uses.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import ROOT
from .test_configs import SCRIPTS, compose

MARK, SLOW = "<!-- tested -->", "<!-- tested, slow -->"
FOLDERS = ("worldmodel", "envs", "policies", "configs", "scripts", "tests")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    mark: str


def blocks() -> list[Block]:
    found, lines, number = [], (ROOT / "README.md").read_text(encoding="utf-8").splitlines(), 0
    while number < len(lines):
        fence = re.match(r"```(\w+)", lines[number])
        if fence:
            start, number = number, number + 1
            while lines[number] != "```":
                number += 1
            before = [line for line in lines[:start] if line.strip()]
            body = "\n".join(lines[start + 1 : number])
            found.append(Block(fence[1], body, start + 1, before[-1] if before else ""))
        number += 1
    return found


def commands() -> list[tuple[int, list[str]]]:
    """Line and words of every shell command; continued lines are joined, comments dropped."""
    found = []
    for block in (b for b in blocks() if b.language == "bash"):
        for offset, line in enumerate(block.text.replace("\\\n", " ").splitlines()):
            if words := shlex.split(line, comments=True):
                found.append((block.line + 1 + offset, words))
    return found


def test_every_script_in_the_readme_exists_and_accepts_its_arguments() -> None:
    seen = 0
    for line, words in commands():
        if words[:2] != ["python", "-m"] or not words[2].startswith("scripts."):
            continue
        script = words[2].removeprefix("scripts.")
        assert script in SCRIPTS, f"README.md:{line}: no scripts.{script}; there are {SCRIPTS}"
        compose(script, *[w for w in words[3:] if "=" in w and not w.startswith("-")])
        seen += 1
    assert seen


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))
    used = {word for _, words in commands() if words[0] == "make" for word in words[1:]}
    used = {word for word in used if "=" not in word}
    assert used >= {"demo", "test"}
    assert used <= targets, f"the Makefile has {sorted(targets)}"


def test_every_local_link_and_image_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'(?:src|href)="([^"#]+)"', text)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


def test_the_map_names_every_folder() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in FOLDERS if f"`{name}/`" not in text]


def test_the_install_line_is_the_same_everywhere() -> None:
    """README, Makefile and the rendering probe tell the reader the same thing to type."""
    line = re.search(r"apt-get install -y [a-z0-9- ]+", (ROOT / "envs/rendering.py").read_text())
    assert line
    for name in ("README.md", "Makefile"):
        assert line[0] in (ROOT / name).read_text(encoding="utf-8"), f"{name} lacks: {line[0]}"


@pytest.mark.parametrize(
    "block", [b for b in blocks() if b.language == "python"], ids=lambda b: f"line{b.line}"
)
def test_python_in_the_readme_compiles(block: Block) -> None:
    compile(block.text, f"README.md:{block.line}", "exec")


@pytest.mark.timeout(600)  # several programs one after the other, on a machine that may be busy
@pytest.mark.parametrize(
    "marks", [(MARK,), pytest.param((MARK, SLOW), marks=pytest.mark.slow)], ids=["quick", "slow"]
)
def test_the_tested_blocks_run(marks: tuple[str, ...], tmp_path: Path) -> None:
    for name in (*FOLDERS, "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ran = 0
    for block in (b for b in blocks() if b.mark in marks):
        program = {
            "bash": ["bash", "-euo", "pipefail", "-c"],
            "python": [sys.executable, "-c"],
        }[block.language]
        done = subprocess.run(
            [*program, block.text],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (
            f"README.md:{block.line} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
        ran += 1
    assert ran, f"no block of the README is marked {marks}"
