"""Run every block of a page as a reader would, in an empty folder: `python tests/run_page.py README.md`.

It needs nothing but Python, so that it runs where only the wheel is installed (`make readme`). Blocks of `python`
share one program, in the order of the page; one whose first line is `# NAME.py` is that file instead. Each line of a
block of `sh` is a command. A table among the blocks of `text` has to be printed by the program. A block with a second
word (```python ultralytics) needs that package: it is left out here and has a test of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w+) *(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.py)\b")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the package that it needs ("": none beyond ours), and its code."""

    language: str
    needs: str
    code: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(*found) for found in FENCE.findall(page)]


def steps(page: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The name and the command line of each step; the page's files are written into the folder before the first."""
    plain = [block for block in blocks(page) if not block.needs]
    program = []
    for block in plain:
        if block.language == "python" and (named := FILE.match(block.code)):
            (folder / named[1]).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            program.append(block.code)
    yield "the blocks of python", [sys.executable, "-c", "\n".join(program)]
    for line in "".join(block.code for block in plain if block.language == "sh").splitlines():
        yield line, ["bash", "-ec", line]


def missing_tables(page: str, printed: str) -> list[str]:
    """The tables that the page shows and the program did not print."""
    return [block.code for block in blocks(page) if "━" in block.code and block.code not in printed]


def main(path: Path) -> int:
    """Run the page; 1 if a step fails or a table is another."""
    page, printed = path.read_text(encoding="utf-8"), ""
    binaries = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    with tempfile.TemporaryDirectory() as folder:
        for name, command in steps(page, Path(folder)):
            done = subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, "PATH": binaries, "PYTHONPATH": ""},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            printed += done.stdout
            sys.stdout.write(f"{path.name}: {name}: {'failed' if done.returncode else 'ok'}\n")
            if done.returncode:
                sys.stdout.write(done.stdout)
                return 1
    tables = missing_tables(page, printed)
    sys.stdout.writelines(f"{path.name} shows a table that was not printed:\n{table}" for table in tables)
    return int(bool(tables))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
