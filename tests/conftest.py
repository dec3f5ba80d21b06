"""A test is a shell line and its whole output: `sh(line)` runs it in an empty directory with an empty home."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import HealthCheck, settings

# Of the checkout where the install is older than it, and lacks a command.
BIN = f"{Path(sys.executable).parent}:{Path(__file__).resolve().parent.parent / 'bin'}"
DATA = Path(__file__).parent / "data"

# How long an example takes, to draw or to try, says more of the machine and of what else it does than of what is tested.
# Each run tries the same ones, so that none fails for what its change has nothing to do with; --hypothesis-profile=default
# draws new ones.
settings.register_profile("any machine", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# A shell without job control starts what it puts into the background with SIGINT ignored, nohup ignores SIGHUP, and
# both are inherited: by us, and by the commands that a test sends signals to.
for ignored, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, handler)


class Ran(NamedTuple):
    """What a line of shell did: the status of its last command, and all it wrote."""

    status: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.out.splitlines()]

    def kinds(self) -> str:
        """The stream as one word a record: a message by its role, a handoff by its status."""
        return " ".join(record.get("role") or record.get("status") if record["type"] in ("message", "handoff")
                        else record["type"] for record in self.records)  # fmt: skip


def environment(home: Path, **more: str) -> dict[str, str]:
    """A new user's: nothing set but what a login shell has."""
    return {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
    } | more


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home."""
    made = tmp_path / "home"
    made.mkdir()
    return made


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty directory to work in."""
    made = tmp_path / "work"
    made.mkdir()
    return made


@pytest.fixture
def sh(script_runner: Any, home: Path, work: Path) -> Any:
    """Run a line in bash; stdin is /dev/null unless the line says otherwise."""

    def run(line: str, **more: str) -> Ran:
        ran = script_runner.run(["bash", "-c", line], cwd=work, env=environment(home, **more), print_result=False)
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    return run


@pytest.fixture
def batch(work: Path) -> Any:
    """Write so many threads t0, t1, ... of one question each to the file `in`."""
    line = '{"v":1,"type":"message","thread":"t%d","id":"m%d","role":"user","content":"question %d"}\n'

    def write(count: int) -> None:
        (work / "in").write_text("".join(line % (n, n, n) for n in range(count)))

    return write


def at_noon() -> str:
    """A TZ in which it is about noon, so that no midnight comes while a test counts what was done today."""
    return f"NOON{time.gmtime().tm_hour - 12:+d}"


def masked(text: str) -> str:
    """Ids, times and durations as one letter each, so that a whole output can be compared."""
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "TIME", text)
    return re.sub(r'("[a-z_]+_ms":)[0-9.]+', r"\1N", text)
