"""The Jupyter kernel: installed into a folder of its own, started, and spoken to over ZMQ."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import unittest
from pathlib import Path

import pytest

import fastgrad as fg
from fastgrad.__main__ import main

for _module in ("ipykernel", "jupyter_kernel_test", "nbclient", "nbformat"):
    pytest.importorskip(_module)

import jupyter_kernel_test  # noqa: E402 - what is missing skips this file
import nbclient  # noqa: E402
import nbformat  # noqa: E402
from jupyter_client.kernelspec import KernelSpecManager  # noqa: E402
from jupyter_client.manager import start_new_kernel  # noqa: E402

from fastgrad.repl import install  # noqa: E402

SETUP = "X = np.random.default_rng(0).normal(size=(6, 4)); y = np.arange(6) % 4"
WRONG = "%gradcheck fg.cross_entropy(X, y) --grad -fg.cross_entropy.grad(X,y)"


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    return tmp_path_factory.mktemp("prefix")


@pytest.fixture(scope="module", autouse=True)
def installed(prefix):
    """The kernel in a folder where only these tests look."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, folder in {
            "JUPYTER_PATH": "share/jupyter",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_RUNTIME_DIR": "run",
            "IPYTHONDIR": "ipython",
        }.items():
            patch.setenv(variable, str(prefix / folder))
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        assert main(["kernel", "install", "--prefix", str(prefix)]) == 0
        yield


class Outputs:
    """What one execute request gave: the reply and the messages that others see."""

    def __init__(self, client, code, timeout=60):
        self.messages = []
        self.reply = client.execute_interactive(
            code, timeout=timeout, store_history=True, output_hook=self.messages.append
        )["content"]

    def of(self, kind):
        return [m["content"] for m in self.messages if m["msg_type"] == kind]


@pytest.fixture(scope="module")
def kernel(installed):
    manager, client = start_new_kernel(kernel_name="fastgrad")
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.fixture
def execute(kernel):
    client = kernel[1]
    Outputs(client, f"%reset -f\n{SETUP}")
    return lambda code: Outputs(client, code)


# ---- conformance --------------------------------------------------------------------------------


class TestConformance(jupyter_kernel_test.KernelTests):
    """Every message against the protocol's specification."""

    kernel_name = "fastgrad"
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    code_generate_error = "raise"
    code_execute_result = [{"code": "6 * 7", "result": "42"}]  # noqa: RUF012
    code_page_something = "%gradcheck?"
    code_inspect_sample = "fg.softmax"
    code_clear_output = "from IPython.display import clear_output; clear_output()"
    code_display_data = [  # noqa: RUF012 - the base class reads it from here
        {
            "code": "from IPython.display import HTML, display; display(HTML('x'))",
            "mime": "text/html",
        },
        {
            "code": f"{SETUP}\n_ = get_ipython().run_line_magic('gradcheck', 'fg.softmax(X)')",
            "mime": "text/html",
        },
    ]
    completion_samples = [  # noqa: RUF012
        {"text": "isinst", "matches": {"isinstance"}},
        {"text": "%gradcheck --eval", "matches": {"--eval-dtype"}},
    ]
    complete_code_samples = ["fg.softmax", "%gradcheck f(x)"]  # noqa: RUF012
    incomplete_code_samples = ["def f(x):", "fg.softmax("]  # noqa: RUF012
    invalid_code_samples = ["import = 7q"]  # noqa: RUF012
    # "range" fails in the same way with IPython's own kernel.
    supported_history_operations = ("tail", "search")


def test_conformance_is_tested():
    assert issubclass(TestConformance, unittest.TestCase)
    assert unittest.defaultTestLoader.getTestCaseNames(TestConformance)


# ---- what a client sees -------------------------------------------------------------------------


def test_who_it_is(kernel):
    info = kernel[1].kernel_info(reply=True, timeout=60)["content"]
    assert info["implementation"] == "fastgrad"
    assert info["implementation_version"] == fg.__version__
    assert info["language_info"]["name"] == "python"
    assert info["banner"].startswith(f"fastgrad {fg.__version__} | ")
    assert len(info["banner"].splitlines()) <= 4


def test_a_right_gradient_is_one_report_and_one_line(execute):
    done = execute("%gradcheck fg.cross_entropy(X, y)")
    (report,) = done.of("display_data")
    assert set(report["data"]) == {"text/plain", "text/html"}
    assert "\x1b" not in report["data"]["text/plain"]
    (value,) = done.of("execute_result")
    assert list(value["data"]) == ["text/plain"]
    assert value["data"]["text/plain"].startswith("<GradcheckResult PASS 24/24")
    assert done.of("stream") == []


def test_a_wrong_gradient_is_an_error_message_behind_its_report(execute):
    done = execute(WRONG)
    assert done.reply["status"] == "error"
    assert done.reply["ename"] == "GradcheckError"
    (report,) = done.of("display_data")
    assert "✘ FAIL" in report["data"]["text/html"]
    (error,) = done.of("error")
    assert error["ename"] == "GradcheckError"
    assert len(error["traceback"]) <= 3


def test_misuse_is_a_line_and_an_error(execute):
    done = execute("%gradcheck nothing(X)")
    assert (done.reply["status"], done.reply["ename"]) == ("error", "UsageError")
    (stream,) = done.of("stream")
    assert stream["text"] == "UsageError: name 'nothing' is not defined\n"


def test_reset_leaves_fastgrad_there(execute):
    execute("%reset -f")
    assert execute("fg.softmax(np.zeros((1, 2)))").reply["status"] == "ok"
    assert execute("%who").of("stream")[0]["text"] == "Interactive namespace is empty.\n"


def test_progress_is_replaced_by_the_report(execute):
    execute("def f(x):\n    import time; time.sleep(0.0003); return np.sum(x ** 2), 2 * x")
    done = execute("%gradcheck --mode full f(np.ones(600))")
    (shown,) = done.of("display_data")
    *updates, last = done.of("update_display_data")
    assert "<progress" in shown["data"]["text/html"]
    assert all("<progress" in u["data"]["text/html"] for u in updates)
    assert "✔ PASS" in last["data"]["text/html"]
    assert last["transient"] == shown["transient"]


@pytest.mark.parametrize(
    "magic", ["profile_loss --no-mem -t 60", "gradcheck --budget 60 --mode full"]
)
def test_an_interrupt_in_a_long_kernel_ends_within_a_second(kernel, execute, magic):
    """Nearly all the time is spent in C, which looks at signals; a report is left."""
    # A call takes so long that the fewest rounds of a profile, 15, are not over by then.
    manager, client = kernel
    execute("big = np.ones((600, 1000)); labels = np.zeros(600, int); fg.set_num_threads(1)")
    execute("def loss(z, t): return sum(fg.cross_entropy(z, t) for _ in range(1000))")
    execute("def loss_grad(z, t): return 1000 * fg.cross_entropy.grad(z, t)")
    request = client.execute(f"%{magic} loss(big, labels)")
    time.sleep(2.5)
    assert not client.shell_channel.msg_ready()
    manager.interrupt_kernel()
    pressed = time.monotonic()
    reply = client.get_shell_msg(timeout=60)
    took = time.monotonic() - pressed
    assert reply["parent_header"]["msg_id"] == request
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert took < 1.0
    last = ""
    while True:
        message = client.get_iopub_msg(timeout=10)
        if message["parent_header"].get("msg_id") != request:
            continue
        last = message["content"].get("data", {}).get("text/plain", last)
        if message["content"].get("execution_state") == "idle":
            break
    assert "interrupted" in last


def test_two_kernels_at_once(execute):
    manager, client = start_new_kernel(kernel_name="fastgrad")
    try:
        assert Outputs(client, "mine = 1").reply["status"] == "ok"
        assert execute("mine").reply["ename"] == "NameError"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# ---- notebooks ----------------------------------------------------------------------------------


def run_notebook(*cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    try:
        nbclient.NotebookClient(notebook, kernel_name="fastgrad", timeout=120).execute()
    finally:
        nbformat.validate(notebook)
    return notebook


def test_a_notebook_runs_and_its_outputs_are_small():
    notebook = run_notebook(
        SETUP, "%gradcheck fg.cross_entropy(X, y)", "%profile_loss -t 0.2 fg.softmax(X)"
    )
    for cell in notebook.cells[1:]:
        report, value = cell.outputs
        assert report.output_type == "display_data"
        assert value.output_type == "execute_result"
        assert len(json.dumps(cell.outputs)) < 200_000


def test_a_notebook_stops_at_a_wrong_gradient():
    cells = [SETUP, WRONG, "raise AssertionError('reached')"]
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="GradcheckError") as caught:
        run_notebook(*cells)
    assert "reached" not in str(caught.value)


def test_the_tour_names_the_bug_mends_it_and_ends_with_centroids():
    notebook = nbformat.read(Path(__file__).parents[1] / "docs" / "tour.ipynb", 4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, kernel_name="fastgrad", timeout=120).execute()
    reports = [
        o["data"]["text/plain"]
        for cell in notebook.cells
        for o in cell.get("outputs", [])
        if o["output_type"] == "display_data"
    ]
    assert [" ".join(r.split()[:2]) for r in reports] == [
        "✘ FAIL",
        "✔ PASS",
        "✔ PASS",
        "cross_entropy Z",
        "plain Z",
        "✔ PASS",
    ]
    assert "-0.480453 times" in reports[0]  # minus the square of ln 2
    assert not any("DISAGREES" in r for r in reports)


# ---- installing ---------------------------------------------------------------------------------


def test_what_is_installed(prefix):
    found = KernelSpecManager().get_kernel_spec("fastgrad")
    folder = Path(found.resource_dir)
    assert folder == prefix / "share/jupyter/kernels/fastgrad"
    assert {p.name for p in folder.iterdir()} == {
        "kernel.json",
        "logo-32x32.png",
        "logo-64x64.png",
        "logo-svg.svg",
    }
    assert found.argv[0] == sys.executable
    assert found.language == "python"
    assert (folder / "logo-32x32.png").read_bytes()[16:24] == b"\0\0\0\x20\0\0\0\x20"


def test_install_and_uninstall_under_another_name(prefix, capsys):
    options = ["--prefix", str(prefix), "--name", "other"]
    install = [
        "kernel",
        "install",
        *options,
        "--display-name",
        "D",
        "--env",
        "OMP_NUM_THREADS",
        "1",
    ]
    assert main(install) == 0
    said = capsys.readouterr().out
    found = json.loads((prefix / "share/jupyter/kernels/other/kernel.json").read_text())
    assert (found["display_name"], found["env"]) == ("D", {"OMP_NUM_THREADS": "1"})
    undo = said.splitlines()[-1].removeprefix("to undo: fastgrad ").split()
    assert main(undo) == 0
    assert not (prefix / "share/jupyter/kernels/other").exists()
    assert main(undo) == 1
    assert "there is no kernel 'other'" in capsys.readouterr().err


@pytest.mark.parametrize("where", [["--name", "bad name!"], ["--prefix", "/dev/null/x"]])
def test_what_cannot_be_installed_is_said_in_one_line(where, capsys):
    assert main(["kernel", "install", *where]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("fastgrad kernel install: ")


def test_uninstall_leaves_other_kernels_alone(prefix, capsys):
    folder = prefix / "share/jupyter/kernels/python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps({"argv": ["python"]}))
    assert main(["kernel", "uninstall", "--name", "python3", "--prefix", str(prefix)]) == 1
    assert "is not a fastgrad kernel" in capsys.readouterr().err
    assert (folder / "kernel.json").exists()


def test_the_user_place_is_jupyters(prefix):
    assert main(["kernel", "install", "--user", "--name", "mine"]) == 0
    assert (prefix / "data/kernels/mine/kernel.json").exists()
    assert main(["kernel", "uninstall", "--user", "--name", "mine"]) == 0


def test_doctor(capsys, prefix):
    assert main(["kernel", "doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok  ") for line in lines)
    assert len(lines) == 5
    assert main(["kernel", "doctor", "--name", "absent"]) == 1
    assert "run: fastgrad kernel install" in capsys.readouterr().out


def test_doctor_sees_another_interpreter(capsys, prefix):
    main(["kernel", "install", "--prefix", str(prefix), "--name", "stale"])
    path = prefix / "share/jupyter/kernels/stale/kernel.json"
    spec = json.loads(path.read_text())
    spec["argv"][0] = "/nowhere/python"
    path.write_text(json.dumps(spec))
    assert main(["kernel", "doctor", "--name", "stale"]) == 1
    said = capsys.readouterr().out
    assert "BAD  it starts /nowhere/python, not this one" in said


def test_doctor_knows_its_interpreter_by_another_name(capsys, prefix, monkeypatch):
    python = prefix / "python"
    python.symlink_to(sys.executable)
    (prefix / "python3").symlink_to(python)
    (prefix / "elsewhere").mkdir()
    (prefix / "elsewhere" / "python").symlink_to(python)
    monkeypatch.setattr(install, "start_new_kernel", _no_start)
    for starts, runs, good in (
        ("python", "python3", True),
        ("python", "elsewhere/python", False),
        ("nowhere", "python", False),
    ):
        monkeypatch.setattr(sys, "executable", str(prefix / starts))
        main(["kernel", "install", "--prefix", str(prefix), "--name", "alias"])
        monkeypatch.setattr(sys, "executable", str(prefix / runs))
        main(["kernel", "doctor", "--name", "alias"])
        said = capsys.readouterr().out
        assert (f"ok   it starts {prefix / starts}\n" in said) is good
        assert (f"BAD  it starts {prefix / starts}, not this one" in said) is not good


def _no_start(**options):
    raise RuntimeError("not tried")


@pytest.mark.parametrize("text", ["{bad", "[1]", '{"language": 3}', "{}", '{"argv": []}'])
def test_a_damaged_kernel_is_said_in_one_line(capsys, prefix, text):
    folder = prefix / "share/jupyter/kernels/damaged"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernel.json").write_text(text)
    assert main(["kernel", "doctor", "--name", "damaged"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith(("BAD  kernel.json is damaged: ", "BAD  it does not start fastgrad"))
    assert main(["kernel", "uninstall", "--name", "damaged", "--prefix", str(prefix)]) == 1
    assert "is not a fastgrad kernel; left as it is" in capsys.readouterr().err
    assert folder.exists()


def test_a_place_where_jupyter_does_not_look_is_told(capsys, prefix, tmp_path):
    main(["kernel", "install", "--prefix", str(tmp_path)])
    said = capsys.readouterr().out.splitlines()
    where = (tmp_path / "share/jupyter").resolve()
    assert said[1] == f"Jupyter here does not look there, unless JUPYTER_PATH has {where}"
    main(["kernel", "install", "--prefix", str(prefix), "--name", "there"])
    assert "does not look" not in capsys.readouterr().out


# ---- without the extra --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "command", "message"),
    [
        ("ipykernel", "-m fastgrad.repl.kernel", "the fastgrad kernel needs ipykernel; install it"),
        ("jupyter_client", "-m fastgrad kernel install", "fastgrad kernel needs jupyter_client; "),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path, missing, command, message):
    # A module that is None in sys.modules cannot be imported.
    code = (
        f"import sys, runpy; sys.modules[{missing!r}] = None; "
        f"_, module, *sys.argv[1:] = {command!r}.split(); "
        "runpy.run_module(module, run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.endswith("pip install 'fastgrad[repl]'\n")
    assert len(done.stderr.splitlines()) == 1
