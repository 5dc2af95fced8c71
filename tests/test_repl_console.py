"""The terminal: a real one of 80 columns, IPython's options, and what happens without IPython."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

import fastgrad as fg
from fastgrad.__main__ import main

for _module in ("IPython", "rich", "pexpect", "pyte"):
    pytest.importorskip(_module)

import pexpect  # noqa: E402 - what is missing skips this file
import pyte  # noqa: E402

COLUMNS = 80
# pexpect forks; from Python 3.12 on that warns where a library has started threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def start(folder, *arguments, code="import fastgrad.__main__ as m; m.main()"):
    """A command line, in a folder of its own."""
    environment = {
        **os.environ,
        "IPYTHONDIR": str(folder),
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
    }
    return [sys.executable, "-I", "-c", code, *arguments], environment


class Terminal:
    """IPython behind a pseudo-terminal, and what its screen shows."""

    def __init__(self, folder):
        command, environment = start(folder)
        self.screen = pyte.Screen(COLUMNS, 300)
        self.stream = pyte.Stream(self.screen)
        self.child = pexpect.spawn(
            command[0],
            command[1:],
            env=environment,
            dimensions=(300, COLUMNS),
            encoding="utf-8",
            # Whoever starts the tests in the background has them ignore it, and so their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def until(self, text, timeout=60):
        """Read until the screen shows a text."""
        end = time.monotonic() + timeout
        while text not in "\n".join(self.lines()):
            assert time.monotonic() < end, "\n".join(self.lines())
            try:
                self.stream.feed(self.child.read_nonblocking(100_000, timeout=0.2))
            except pexpect.TIMEOUT:
                continue

    def lines(self):
        return [line.rstrip() for line in self.screen.display]

    def type(self, line, prompt):
        """Type a line, wait for the next prompt, and return the lines in between."""
        before = len(self.shown())
        self.child.send(line + "\r")
        self.until(f"In [{prompt}]:")
        return self.shown()[before:]

    def shown(self):
        text = self.lines()
        while text and not text[-1]:
            text.pop()
        return text


@pytest.fixture
def terminal(tmp_path):
    terminal = Terminal(tmp_path)
    terminal.until("In [1]:")
    yield terminal
    terminal.child.close(force=True)


def test_both_reports_at_80_columns(terminal):
    banner = terminal.shown()
    first = next(i for i, line in enumerate(banner) if line.startswith("fastgrad"))
    assert banner[first].startswith(f"fastgrad {fg.__version__} | ")
    assert "%gradcheck" in banner[first + 1]
    assert "%profile_loss" in banner[first + 2]
    assert banner[first + 3] == ""
    terminal.type("X = np.ones((16, 10)); y = np.arange(16) % 10", 2)
    report = terminal.type("%gradcheck fg.cross_entropy(X, y)", 3)
    assert any(
        line.startswith("✔ PASS  cross_entropy   d/dlogits (16, 10) float64") for line in report
    )
    wrong = terminal.type("%gradcheck fg.cross_entropy(X, y) --grad -fg.cross_entropy.grad(X,y)", 4)
    assert any(line.startswith("✘ FAIL") for line in wrong)
    assert any(line.startswith("GradcheckError: cross_entropy: d/dlogits") for line in wrong)
    profile = terminal.type("%profile_loss -t 0.3 fg.cross_entropy(X, y)", 5)
    (head,) = (line for line in profile if "median" in line)
    (both,) = (line for line in profile if line.startswith("both "))
    # One line each, the columns under their headings, the last one in full.
    assert head.endswith("of peak")
    assert both.endswith("%")
    assert len(head) == len(both) <= COLUMNS
    # In colour.
    row = next(i for i, line in enumerate(terminal.lines()) if line.startswith("✔ PASS"))
    assert terminal.screen.buffer[row][0].fg == "green"


def test_ctrl_c_leaves_a_partial_report_and_no_progress(terminal):
    terminal.type(
        "def f(x):\r    import time; time.sleep(0.0005); return np.sum(x ** 2), 2 * x\r", 2
    )
    terminal.child.send("%gradcheck --mode full --budget 60 f(np.ones(10_000))\r")
    terminal.until("╺")  # some of the progress bar is done: before, there is nothing to report
    terminal.child.sendintr()
    terminal.until("In [3]:")
    text = "\n".join(terminal.lines())
    assert "INTERRUPTED  f" in text
    assert "KeyboardInterrupt" in text
    assert "Traceback" not in text
    assert "━" not in text


def run(folder, *arguments, code=None, stdin=""):
    command, environment = start(folder, *arguments, **({"code": code} if code else {}))
    return subprocess.run(
        command,
        env=environment,
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_code_and_files_run_with_the_names_and_the_magics(tmp_path):
    done = run(tmp_path, "repl", "-c", "%gradcheck fg.softmax(np.zeros((2, 3)));")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("✔ PASS  softmax")
    assert "\x1b" not in done.stdout
    (tmp_path / "script.ipy").write_text(
        "%gradcheck -q -k fg.hinge(np.ones(2), [1, 1])\nprint(_gradcheck)"
    )
    assert "hinge" in run(tmp_path, "repl", "script.ipy").stdout
    code = (
        "import runpy, sys; runpy.run_module('fastgrad.repl', run_name='__main__', alter_sys=True)"
    )
    assert run(tmp_path, "-c", "print(fg.__name__)", code=code).stdout == "fastgrad\n"


def test_a_failed_check_fails_the_command(tmp_path):
    line = "%gradcheck fg.softmax(np.zeros((2, 3))) --grad fg.softmax.jvp"
    done = run(
        tmp_path, "repl", "-c", "%gradcheck fg.hinge(np.ones(3) / 2, [1, 1, -1]) --grad np.ones(3)"
    )
    assert done.returncode != 0, line
    assert "GradcheckError" in done.stdout + done.stderr


def test_nothing_runs_without_ipython(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert main(["repl", "-c", "print(1)"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "fastgrad repl needs IPython for -c print(1); install it with: "
        "pip install 'fastgrad[repl]'\n"
    )


def test_python_s_own_prompt_without_ipython(tmp_path):
    code = "import sys; sys.modules['IPython'] = None; import fastgrad.__main__ as m; m.main()"
    done = run(tmp_path, code=code, stdin="bool(fg.gradcheck(fg.softmax, np.zeros((2, 3))))\n")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [">>> True", ">>> "]
    first, second = done.stderr.splitlines()[:2]
    assert first.startswith("IPython is not installed, so there are no magics")
    assert second.startswith(f"fastgrad {fg.__version__} | ")
