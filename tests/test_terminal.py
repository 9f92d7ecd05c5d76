"""Where a command's output goes: pipes that close, full disks, closed streams, languages without UTF-8; and its exit code."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A command that imports as little as can be; what it leaves behind says that it came to its end.
SCRIPT = """
import sys
from pathlib import Path
from guidedgen.cli import terminal
from guidedgen.basics.errors import BadValue, UsageError

def main():
    print("first é")
    {body}
    Path("end").write_text("é")

terminal.run(main)
"""
LINES = "[print('line', i) for i in range(100000)]"


def call(folder: Path, body: str, shell: str = '{python} main.py "$@"', **environment: str) -> "subprocess.CompletedProcess[str]":
    (folder / "main.py").write_text(SCRIPT.replace("{body}", body), encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "LC_", "LANG"))}
    return subprocess.run(
        ["bash", "-c", shell.replace("{python}", sys.executable), "main.py", "é"], cwd=folder, capture_output=True, text=True,
        env={**kept, "PYTHONPATH": str(ROOT), **environment}, check=False, timeout=60, encoding="utf-8", errors="replace",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shell", "code", "message"),
    [
        ('{python} main.py | head -1; exit "${PIPESTATUS[0]}"', 0, ""),
        ("{python} main.py > /dev/full", 1, "the output cannot be written (No space left on device)"),
        ("{python} main.py >&-", 0, ""),
        ("{python} main.py <&- >&- 2>&-", 0, ""),
        ("{python} main.py 2> /dev/full >&-", 0, ""),
    ],
)
def test_work_goes_on_whatever_its_output_goes_to(
    shell: str, code: int, message: str, tmp_path: Path, tried: Callable[..., None]
) -> None:
    """A reader that has enough, a full disk, closed streams, whose numbers no file may get."""
    done = call(tmp_path, LINES, shell)
    assert (done.returncode, (tmp_path / "end").read_text()) == (code, "é"), done.stderr
    assert done.stderr.count("\n") == bool(message) and message in done.stderr
    tried("used")


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C"}, {},
    ],
)  # fmt: skip
def test_any_language_will_do(environment: dict[str, str], tmp_path: Path, tried: Callable[..., None]) -> None:
    """Arguments and files are UTF-8; what a stream cannot show is written out."""
    done = call(tmp_path, "assert sys.argv[1] == 'é', ascii(sys.argv); Path('é').write_text('é'); print('\\u2501')", '{python} main.py é',
                **environment)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "end").read_bytes() == (tmp_path / "é").read_bytes() == "é".encode()
    tried("used")


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("raise UsageError('seed=x:\\n  wrong')", 2, "guidedgen: seed=x: wrong\n"),
        ("raise BadValue('steps', 0, 'must be at least 1')", 2, "guidedgen: steps=0: must be at least 1\n"),
        ("raise KeyboardInterrupt", 130, "guidedgen: interrupted\n"), ("sys.exit(75)", 75, ""), ("sys.exit()", 0, ""),
        ("sys.exit('guidedgen: the disk is full')", 1, "guidedgen: the disk is full\n"), ("sys.exit(2)", 2, ""),
    ],
)  # fmt: skip
def test_a_command_ends_with_one_line_and_its_code(
    body: str, code: int, message: str, tmp_path: Path, tried: Callable[..., None]
) -> None:
    done = call(tmp_path, body)
    assert (done.returncode, done.stdout, done.stderr) == (code, "first é\n", message)
    assert not (tmp_path / "end").exists()
    tried("refused" if code else "used")
