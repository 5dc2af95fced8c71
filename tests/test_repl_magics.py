"""The magics in a shell of this process: options, results, errors, completion, unloading."""

from __future__ import annotations

import gc
import io
import json
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("IPython")
pytest.importorskip("rich")

from IPython.core.completer import provisionalcompleter
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

import fastgrad as fg
from fastgrad._profile import measure
from fastgrad.repl import views
from fastgrad.repl.completion import Matcher

SETUP = """
import numpy as np, fastgrad as fg
X = np.random.default_rng(0).normal(size=(6, 4)); y = np.arange(6) % 4
def right(X, y): return fg.cross_entropy(X, y)
def right_grad(X, y): return fg.cross_entropy.grad(X, y)
def pair(X, y): return fg.cross_entropy.value_and_grad(X, y)
def wrong(X, y):
    value, G = pair(X, y)
    G[:, -1] = 0
    return value, G
def bare(X, y): return fg.cross_entropy(X, y)
"""
NO_GRADIENT = (
    "no gradient of lambda X: X found: it has no .grad, .value_and_grad or .vjp, and returns no "
    "pair (value, gradient)."
)


@pytest.fixture
def shell(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    InteractiveShell.clear_instance()
    config = Config()
    config.HistoryManager.enabled = False  # no database, and no thread that writes to it
    shell = InteractiveShell.instance(config=config)
    with capture_output() as loading:
        shell.run_line_magic("load_ext", "fastgrad")
    assert loading.stdout + loading.stderr == ""
    shell.run_cell(SETUP)
    yield shell
    shell.restore_sys_module_state()
    InteractiveShell.clear_instance()


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    """These tests look at no time, so it may be a rough one."""
    monkeypatch.setattr(measure, "SAMPLE", 2e-4)


@pytest.fixture
def run(shell):
    """Run a cell; its result, what was displayed, and what was printed."""

    def run(source):
        with capture_output() as shown:
            result = shell.run_cell(source, store_history=True)
        return SimpleNamespace(
            value=result.result,
            error=result.error_in_exec,
            reports=[o.data for o in shown.outputs],
            out=shown.stdout,
            err=shown.stderr,
        )

    return run


# ---- %gradcheck ---------------------------------------------------------------------------------


def test_a_right_gradient(run):
    done = run("%gradcheck fg.cross_entropy(X, y)")
    assert done.error is None
    (report,) = done.reports
    assert report["text/plain"].startswith("✔ PASS  cross_entropy   d/dlogits (6, 4) float64")
    assert "✔ PASS" in report["text/html"]
    # The report once, and a line as the value of the cell.
    assert done.out == f"Out[1]: {done.value!r}\n"
    assert repr(done.value).startswith("<GradcheckResult PASS 24/24")


def test_a_wrong_gradient_shows_its_report_and_raises(run, shell):
    done = run("%gradcheck wrong(X, y)")
    (report,) = done.reports
    assert report["text/plain"].startswith("✘ FAIL  wrong")
    assert type(done.error).__name__ == "GradcheckError"
    assert done.error.result is shell.user_ns["_gradcheck"]
    assert done.error.result.verdict == "FAIL"
    assert "wrong at 6 places" in str(done.error)
    # The short form: no traceback of ours.
    assert "Traceback" not in done.out
    assert "GradcheckError: wrong: d/dX wrong at 6 places" in done.out


def test_the_kept_result_is_shown_in_full_by_a_later_cell(run, shell):
    run("%gradcheck wrong(X, y)")
    done = run("_gradcheck")
    assert done.out.startswith("Out[2]: \n✘ FAIL  wrong")
    data, _ = shell.display_formatter.format(done.value)
    assert "✘ FAIL" in data["text/html"]


@pytest.mark.parametrize(
    "line",
    [
        "right(X, y)",  # right_grad
        "pair(X, y)",  # returns value and gradient
        "bare(X, y) --grad right_grad",
        'bare(X, y) --grad "lambda X, y: right_grad(X, -1 * -y)"',
        "bare(X, y) --grad right_grad(X, y)",
        "fg.cross_entropy.value_and_grad(X, y)",
        "fg.softmax(X)",
        "fg.cross_entropy(X, [{3: 1}[3]] * 6)",  # braces that IPython would expand
        "fg.cross_entropy(X, [3, -1 + 1, *y[2:]], reduction='sum')",
        "fg.linear_cross_entropy(X, np.eye(3, 4), y % 3) --wrt X,1",
        "(X ** 2).sum() --wrt X --grad 2*X",
    ],
)
def test_where_the_gradient_comes_from(run, line):
    done = run(f"%gradcheck {line}")
    assert done.error is None, done.out
    assert done.value.verdict == "PASS"


def test_the_gradient_that_was_found_by_name_is_told(run):
    done = run("%gradcheck right(X, y)")
    assert done.reports[0]["text/plain"].endswith("gradient: right_grad")
    assert "gradient: right_grad" in done.reports[0]["text/html"]


def test_the_gradient_of_a_method_is_another_method(run):
    run(
        "class Model:\n"
        "    def loss(self, X): return (X ** 2).sum()\n"
        "    def loss_grad(self, X): return 2 * X\n"
        "model = Model()\n"
        "def loss_grad(X): return 0 * X\n"
        "def dsum(X): return 0 * X"
    )
    done = run("%gradcheck model.loss(X)")
    assert done.error is None, done.out
    assert done.reports[0]["text/plain"].endswith("gradient: model.loss_grad")
    p = run("%profile_loss -t 0.01 --no-mem model.loss(X)").value
    assert list(p.parts) == ["forward", "gradient"]
    p = run("%profile_loss -t 0.01 --no-mem np.sum(X)").value
    assert list(p.parts) == ["forward"]


def test_only_what_wrt_names_is_checked(run):
    done = run("%gradcheck fg.linear_cross_entropy(X, np.eye(3, 4), y % 3) --wrt X")
    assert list(done.value.inputs) == ["X"]


@pytest.mark.parametrize(
    ("options", "attribute", "value"),
    [
        ("--mode random --dirs 2", "mode", "random"),
        ("-m full", "mode", "full"),
        ("--kind grad", "kind", "grad"),
        ("--seed 7", "seed", 7),
        ("--top 2", "top", 2),
    ],
)
def test_options_reach_the_check(run, options, attribute, value):
    found = getattr(run(f"%gradcheck {options} fg.cross_entropy(X, y)").value, attribute)
    assert str(found).startswith(str(value))


@pytest.mark.parametrize(
    "options",
    [
        {"rtol": 1e-3},
        {"atol": 1.0},
        {"budget": 3.0},
        {"max_evals": 50_000},
        {"nondet": 1e-9},
        {"order": 2},
        {"eval_dtype": "float64"},
        {"directions": 3},
    ],
)
def test_every_other_option_is_handed_on(run, monkeypatch, options):
    given = {}

    def gradcheck(f, *args, **kwargs):
        given.update(kwargs)
        return real(f, *args)

    real = fg.gradcheck
    monkeypatch.setattr(fg, "gradcheck", gradcheck)
    (option, value) = next(iter(options.items()))
    text = {"directions": "dirs"}.get(option, option).replace("_", "-")
    run(f"%gradcheck --{text} {value} fg.cross_entropy(X, y)")
    assert given[option] == value


def test_a_reference_takes_the_numeric_side(run):
    done = run('%gradcheck -k right(X, y) --ref "lambda X, y: 2 * right(X, y)"')
    assert done.value.verdict == "FAIL"


def test_no_raise_quiet_variable_save(run, shell, tmp_path):
    done = run("%gradcheck -k -q -v r wrong(X, y) --save r.json")
    assert done.error is None
    assert done.value is shell.user_ns["r"]
    assert (done.reports, done.out) == ([], f"Out[1]: {done.value!r}\n")
    assert json.loads((tmp_path / "r.json").read_text())["verdict"] == "FAIL"


@pytest.mark.parametrize("magic", ["gradcheck", "profile_loss -t 0.01 --no-mem"])
def test_what_cannot_be_saved_is_shown(run, shell, tmp_path, magic):
    (tmp_path / "r.json").mkdir()
    done = run(f"%{magic} -v r wrong(X, y) --save r.json")
    assert isinstance(done.error, OSError)
    assert len(done.reports) == 1
    assert "r" in shell.user_ns


def test_strict_raises_where_it_cannot_tell(run):
    run("def nowhere(x): return np.sum(x) * np.nan, np.ones_like(x)")
    loose = run("%gradcheck nowhere(X)")
    assert loose.error is None
    assert loose.value.verdict == "UNRESOLVED"
    assert type(run("%gradcheck nowhere(X) --strict").error).__name__ == "GradcheckError"


def test_assignment_loop_semicolon_and_function(run, shell):
    assert run("r = %gradcheck fg.cross_entropy(X, y)").error is None
    assert shell.user_ns["r"].verdict == "PASS"
    assert len(run("for i in range(2):\n    %gradcheck fg.cross_entropy(X, y)").reports) == 2
    done = run("%gradcheck fg.cross_entropy(X, y);")
    assert (done.value, len(done.reports)) == (None, 1)
    run("def inside(scores):\n    r = %gradcheck -q fg.cross_entropy(scores, y)\n    return r")
    assert run("inside(X[:3, :2] * (y[:3, None] >= 0)) if False else inside(X)").value


def test_gradients_written_out_in_a_cell(run):
    body = "\nZ = X @ W\nloss, G = fg.cross_entropy.value_and_grad(Z, y)\n"
    run("W = np.eye(4)")
    done = run("%%gradcheck --wrt W -v r" + body + "{'W': X.T @ G}")
    assert done.error is None
    assert done.value.verdict == "PASS"
    assert "Z" not in run("sorted(globals())").value
    assert type(run("%%gradcheck" + body + "{'W': X.T @ (G * 2)}").error).__name__ == (
        "GradcheckError"
    )


def test_gradients_that_a_cell_adds_up_in_a_dict(run, shell):
    run("W = np.eye(4); grads = {'W': np.zeros((4, 4))}")
    done = run(
        "%%gradcheck --wrt W -v r\n"
        "loss, G = fg.cross_entropy.value_and_grad(X @ W, y)\n"
        "grads['W'] += X.T @ G\n"
        "grads"
    )
    assert done.error is None, done.out
    assert not shell.user_ns["grads"]["W"].any()


def test_functions_that_read_what_moves_as_a_global(run, shell):
    run("W = np.eye(4)\ndef forward(X): return X @ W")
    W = shell.user_ns["W"]
    done = run(
        "%%gradcheck\nloss, G = fg.cross_entropy.value_and_grad(forward(X), y)\n{'W': X.T @ G}"
    )
    assert done.error is None, done.out
    gradient = "(lambda W: X.T @ fg.cross_entropy.grad(X @ W, y))"
    done = run(f"%gradcheck fg.cross_entropy(forward(X), y) --wrt W --grad {gradient}")
    assert done.error is None, done.out
    assert shell.user_ns["W"] is W
    np.testing.assert_array_equal(W, np.eye(4))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%gradcheck", "there is nothing to call"),
        ("%gradcheck --modde full f(X)", "there is no option --modde; did you mean --mode?"),
        ("%gradcheck --mode fast f(X)", "argument -m/--mode: invalid choice: 'fast'"),
        ("%gradcheck rigth(X, y)", "name 'rigth' is not defined; did you mean 'right'?"),
        ("%gradcheck bare(X, y)", "no gradient of bare found: it has no .grad"),
        ("%gradcheck (lambda X: X)(X)", f"{NO_GRADIENT} Name one with --grad."),
        ("%gradcheck right(X=X, y=y)", "say with --wrt which of the keywords to check: X, y."),
        ("%gradcheck --wrt Z right(X, y)", "--wrt: 'Z' is no argument of right; they are X, y."),
        ("%gradcheck -v 1 right(X, y)", "-v wants the name of a variable"),
        ("%gradcheck --save r right(X, y)", "--save wants a file that ends with .json"),
        ("%gradcheck --save no/r.json right(X, y)", "--save: there is no folder 'no'."),
        ("%gradcheck --grad X[:2] right(X, y)", ""),
        ("%%gradcheck f(X)\nX", "%%gradcheck takes options only, not 'f(X)'"),
        (
            "%%gradcheck --grad X\nX",
            "%%gradcheck takes no --grad: the cell ends with its gradients.",
        ),
        ("%profile_loss", "there is nothing to call"),
        ("%profile_loss --what all right(X, y)", "argument --what: must be of forward, gradient, "),
        ("%profile_loss --compare a right(X, y)", "there is no profile 'a'"),
        ("%profile_loss --save no/p.json right(X, y)", "--save: there is no folder 'no'."),
        ("%profile_loss --compare no.json", "--compare: no.json cannot be read: No such file or"),
        ("%profile_loss --threads 0 right(X, y)", "--threads must be 1 at least; got 0."),
        ("%profile_loss --what hvp right(X, y)", "right has no hvp"),
        ("%%profile_loss Z = (\nX", "line 1 of the setup is no Python: '(' was never closed."),
        ("%%profile_loss\nyield X", "line 1 of the cell is no Python: 'yield' outside function."),
        ("%profile_loss right(X, y) --sweep m=1:9 --flops m", "--sweep: nothing here reads m"),
        ("%%profile_loss --sweep m=1:9\nm = X * 2", "--sweep: nothing here reads m"),
    ],
)
def test_misuse_is_one_line(run, line, message):
    done = run(line)
    # Exactly this class: IPython shows subclasses with a traceback.
    assert type(done.error) is UsageError
    assert str(done.error).startswith(message)
    assert len(str(done.error).splitlines()) == 1
    assert "Traceback" not in done.out + done.err
    assert done.err.startswith("UsageError: ")


def test_errors_of_the_function_pass_unchanged(run):
    run("def broken(X):\n    raise ValueError('mine')\nbroken_grad = broken")
    for line in ("%gradcheck broken(X)", "%profile_loss broken(X)"):
        done = run(line)
        assert (type(done.error), str(done.error)) == (ValueError, "mine")
        assert "Traceback" in done.out


@pytest.mark.parametrize(
    ("magic", "kept"),
    [("gradcheck", "_gradcheck"), ("profile_loss -t 60 --rounds 1000", "_profile")],
)
def test_ctrl_c_shows_what_was_found_and_goes_on_as_an_interrupt(run, shell, magic, kept):
    # A profile warms up with some 100 calls at most, then 1000 rounds would follow.
    run(
        f"left = {250 if 'profile' in magic else 50}\n"
        "def slow(X):\n"
        "    import time\n"
        "    global left\n"
        "    left -= 1\n"
        "    if left < 0: raise KeyboardInterrupt\n"
        "    time.sleep(0.002)\n"
        "    return np.sum(X ** 2)\n"
        "def slow_grad(X): return 2 * X"
    )
    before = fg.get_num_threads(), shell.user_ns["X"].copy()
    done = run(f"%{magic} slow(X)")
    assert type(done.error) is KeyboardInterrupt
    (report,) = done.reports
    assert "interrupted" in report["text/plain"]
    assert shell.user_ns[kept] is done.error.result
    assert done.out.strip().splitlines()[-1] == "KeyboardInterrupt"
    assert "Traceback" not in done.out
    assert fg.get_num_threads() == before[0]
    np.testing.assert_array_equal(shell.user_ns["X"], before[1])
    assert gc.isenabled()
    assert not tracemalloc.is_tracing()


def test_configuration(run, shell):
    run("%config FastgradMagics.raise_on_fail = False")
    assert run("%gradcheck wrong(X, y)").error is None
    run("%config FastgradMagics.rtol = 10.0")
    assert run("%gradcheck wrong(X, y)").value.verdict == "PASS"
    run("%config FastgradMagics.peak_bandwidth = 1.5")
    done = run("%profile_loss -t 0.01 --no-mem fg.softmax(X)")
    assert done.value.ceiling.copy == 1.5e9
    assert "peak_bandwidth" in run("%config FastgradMagics").out


def test_help_is_the_manual(run):
    for magic in ("gradcheck", "profile_loss"):
        doc = run(f"get_ipython().find_magic('{magic}').__doc__").value
        assert f"%{magic} fg.cross_entropy(X, y)" in doc
        assert "--plot" in doc


def test_a_figure_is_an_image_in_the_page(run):
    pytest.importorskip("matplotlib")
    for line in ("%gradcheck -k --plot wrong(X, y)", "%profile_loss -t 0.01 --plot fg.softmax(X)"):
        assert 'src="data:image/png;base64,' in run(line).reports[0]["text/html"]
    assert "matplotlib.pyplot" not in sys.modules


# ---- %profile_loss ------------------------------------------------------------------------------


def test_a_profile(run, shell):
    done = run("%profile_loss -t 0.02 fg.cross_entropy(X, y)")
    assert done.error is None
    (report,) = done.reports
    assert report["text/plain"].startswith("cross_entropy   X (6, 4) float64, y (6,) int64")
    assert '<meter min="0" max="1"' in report["text/html"]
    assert done.out == f"Out[1]: {done.value!r}\n"
    assert shell.user_ns["_profile"] is done.value
    assert set(done.value.parts) == {"forward", "gradient", "both", "hvp"}


def test_options_of_a_profile(run):
    line = "%profile_loss -t 0.1 --rounds 7 --no-mem --threads 1 --what fwd,bwd -r none"
    p = run(f"{line} --bytes 1000 --flops 50 fg.cross_entropy(X, y)").value
    assert list(p.parts) == ["forward", "gradient"]
    assert (p.threads, p.reference, p.memory) == (1, None, {})
    assert p.rounds >= 7
    assert p.parts["forward"].read + p.parts["forward"].written == 1000
    assert p.parts["forward"].flops == 50


def test_a_named_reference_with_its_gradient(run):
    run("def other(X, y): return right(X, y)\nother_grad = right_grad")
    p = run("%profile_loss -t 0.01 right(X, y) -- ").value
    p = run("%profile_loss -t 0.01 --ref other right(X, y)").value
    assert p.reference == "other"
    assert set(p.speedup) == set(p.parts) == {"forward", "gradient"}
    p = run("%profile_loss -t 0.01 --ref 'lambda X, y: 2 * right(X, y)' right(X, y)").value
    assert not p.speedup["forward"].agrees
    assert "DISAGREES" in str(p)


def test_a_cell_with_a_setup_line(run):
    p = run("%%profile_loss -t 0.01 Z = X * 2\nfg.softmax(Z)").value
    assert (p.name, p.inputs[0][0]) == ("softmax", "Z")
    p = run("%%profile_loss -t 0.01\nZ = X * 2\nZ.sum()").value
    assert (p.name, [i[0] for i in p.inputs], list(p.parts)) == ("cell", ["X"], ["forward"])


def test_a_sweep(run, shell):
    run("seen = []")
    line = "fg.softmax((seen.append(n), X[:n])[1])"
    p = run(f"%profile_loss -t 0.02 --what forward --sweep n=1:6:2 {line}").value
    assert shell.user_ns["seen"] == [1, 6]  # once for each size
    assert list(p.sweep) == [1, 6]
    assert [q.inputs[0][1] for q in p.sweep.values()] == [(1, 4), (6, 4)]
    p = run("%%profile_loss -t 0.02 --sweep n=2:4:2 Z = X[:n]\nfg.softmax(Z)").value
    assert [q.inputs[0][1] for q in p.sweep.values()] == [(2, 4), (4, 4)]


def test_a_sweep_makes_the_whole_call_anew(run, shell):
    run(
        "seen = set()\n"
        "def loss(X, k, n):\n"
        "    seen.add((len(X), k, n))\n"
        "    return X.sum()\n"
        "def make(k): return lambda X, n: loss(X, k, n)"
    )
    line = "make(n)(X[:n], n=n) --sweep n=2:6:2 --flops 50*n --bytes 160*n --ref make(-n)"
    p = run(f"%profile_loss -t 0.02 --no-mem {line}").value
    assert shell.user_ns["seen"] == {(2, 2, 2), (2, -2, 2), (6, 6, 6), (6, -6, 6)}
    parts = {n: q.parts["forward"] for n, q in p.sweep.items()}
    assert {n: part.flops for n, part in parts.items()} == {2: 100, 6: 300}
    assert {n: part.read + part.written for n, part in parts.items()} == {2: 320, 6: 960}


def test_a_sweep_runs_its_cell_for_every_size(run, shell):
    run("seen = []")
    run(
        "%%profile_loss -t 0.02 --no-mem --sweep n=2:6:2 Z = X[:n]\n"
        "seen.append((len(Z), n))\n"
        "Z.sum()"
    )
    assert set(shell.user_ns["seen"]) == {(2, 2), (6, 6)}


def test_ctrl_c_in_a_sweep_keeps_the_sizes_that_are_done(run, shell):
    run("def f(X):\n    if len(X) > 4: raise KeyboardInterrupt\n    return X.sum()")
    done = run("%profile_loss -t 0.02 --no-mem f(X[:n]) --sweep n=2:6:3")
    assert type(done.error) is KeyboardInterrupt
    assert shell.user_ns["_profile"] is done.error.result
    assert done.error.result.interrupted
    assert list(done.error.result.sweep) == [2, 3]
    (report,) = done.reports
    assert "interrupted" in report["text/plain"]


def test_profiles_are_kept_and_compared(run, tmp_path):
    run("%profile_loss -t 0.01 --save first fg.softmax(X)")
    run("%profile_loss -q -t 0.01 --save second.json fg.softmax(X)")
    assert (tmp_path / "second.json").exists()
    done = run("%profile_loss -t 0.01 fg.softmax(X) --compare first,second.json -v p")
    assert "softmax" in done.out
    assert "first" in done.out
    assert "second" in done.out
    done = run("%profile_loss --compare first,p")
    assert done.error is None
    assert done.out.split()[:2] == ["first", "p"]


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"parts": {}}'])
def test_files_that_hold_no_profile(run, tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    done = run("%profile_loss --compare p.json")
    assert type(done.error) is UsageError
    assert str(done.error) == "--compare: p.json holds no profile, as --save writes it."


# ---- loading ------------------------------------------------------------------------------------


def test_unloading_leaves_nothing_and_loading_twice_is_loading_once(shell):
    def traces():
        return (
            sum(m in t for t in shell.magics_manager.magics.values() for m in MAGICS),
            sum(type(c).__name__ == "FastgradMagics" for c in shell.configurables),
            sum(
                getattr(m, "matcher_identifier", "") == "fastgrad"
                for m in shell.Completer.custom_matchers
            ),
            "FastgradMagics" in shell.magics_manager.registry,
            fg.LossProfile in shell.display_formatter.formatters["text/html"].type_printers,
        )

    MAGICS = ("gradcheck", "profile_loss")
    loaded = (4, 1, 1, True, True)
    assert traces() == loaded
    shell.run_line_magic("load_ext", "fastgrad.repl")
    assert traces() == loaded
    for _ in range(3):
        shell.run_line_magic("reload_ext", "fastgrad")
        assert traces() == loaded
    shell.run_line_magic("unload_ext", "fastgrad")
    assert traces() == (0, 0, 0, False, False)


def test_the_namespace_stays_clean(run, shell):
    before = set(shell.user_ns)
    run("%gradcheck -k wrong(X, y)")
    run("%profile_loss -t 0.01 fg.softmax(X)")
    new = {n for n in set(shell.user_ns) - before if not n.strip("_").isdigit() and n[:2] != "_i"}
    assert new <= {"_gradcheck", "_profile", "_", "__", "___"}


# ---- completion ---------------------------------------------------------------------------------


def complete(shell, text):
    with provisionalcompleter():
        return [c.text for c in shell.Completer.completions(text, len(text))]


@pytest.mark.parametrize("prefix", ["%gradcheck ", "  r = %gradcheck ", "%%gradcheck "])
def test_tab_completes_options_and_choices(shell, prefix):
    assert complete(shell, f"{prefix}--mo") == ["--mode"]
    assert complete(shell, f"{prefix}--mode r") == ["random", "rows"]
    assert complete(shell, f"{prefix}-k --kind=j") == ["jvp", "jac"]
    assert "--strict" in complete(shell, f"{prefix}--")
    assert complete(shell, "%profile_loss --sw") == ["--sweep"]


def test_tab_completes_variables_arrays_and_functions_first(shell):
    shell.user_ns.update(Xname="text", Xarray=np.ones(2), Xfunction=len)
    assert complete(shell, "%gradcheck X") == ["X", "Xarray", "Xfunction", "Xname"]
    assert complete(shell, "%gradcheck right(Xa") == ["Xarray"]
    assert complete(shell, "%gradcheck fg.cross_e") == ["fg.cross_entropy"]
    assert complete(shell, "%gradcheck --wrt X") == ["X", "Xarray"]
    assert complete(shell, "%gradcheck --wrt y,Xa") == ["Xarray"]
    assert complete(shell, "%gradcheck --grad right_") == ["right_grad"]
    assert complete(shell, "%gradcheck nothing.here") == []


def test_tab_calls_nothing_of_the_users(run, shell):
    run(
        "called = []\n"
        "class Model:\n"
        "    inner = {}\n"
        "    @property\n"
        "    def weights(self): called.append(1); raise RuntimeError\n"
        "model = Model()"
    )
    # Not by way of the shell's completer, whose jedi does call properties.
    found = Matcher(shell, {}).variables
    assert found("model.w") == ("model.w", [("model.weights", "instance")])
    assert found("model.weights.f") == ("model.weights.f", [])
    assert found("model.inner.upd") == ("model.inner.upd", [("model.inner.update", "function")])
    assert shell.user_ns["called"] == []


def test_other_lines_complete_as_before(shell):
    assert "right_grad" in complete(shell, "right_")
    assert "%timeit" in complete(shell, "%timei")


# ---- views --------------------------------------------------------------------------------------


def test_a_terminal_narrower_than_a_report(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    for line in ("%gradcheck fg.softmax(X)", "%profile_loss -t 0.01 fg.softmax(X)"):
        done = run(line)
        assert done.error is None, done.err
        assert done.reports[0]["text/plain"] == done.value.report(40)


@pytest.fixture(scope="module")
def results():
    X, y = np.random.default_rng(0).normal(size=(6, 4)), np.arange(6) % 4
    right = fg.gradcheck(fg.cross_entropy, X, y)
    wrong = fg.gradcheck(fg.cross_entropy, X, y, grad=-fg.cross_entropy.grad(X, y))
    kink = fg.gradcheck(fg.hinge, np.array([1.0, 0.3]), np.array([1, 1]))
    return [right, wrong, kink, fg.profile_loss(fg.softmax, X, seconds=0.01)]


def test_pages_hold_nothing_that_a_sanitizer_drops(results):
    for result in results:
        page = views.html(result)
        assert not any(f"<{tag}" in page for tag in ("script", "style", "svg", "iframe", "link"))
        assert " class=" not in page
        assert " id=" not in page
        assert len(page) < 20_000


def test_pages_are_well_formed(results):
    from xml.etree import ElementTree

    for result in results:
        ElementTree.fromstring(views.html(result).replace("&nbsp;", " "))


def test_names_are_escaped():
    X = np.ones((2, 2))
    page = views.html(fg.profile_loss(fg.softmax, X, seconds=0.01, name="<b>", names=["<i>"]))
    assert "&lt;b&gt;" in page
    assert "<i>" not in page


def test_a_page_holds_the_numbers_of_the_report(results):
    _, wrong, _, _ = results
    first = wrong.wrong[0]
    (row,) = (r for r in wrong.report().splitlines() if r.startswith(f"  {first.place} "))
    ratio = row.split()[-1]
    assert ratio == f"{first.error / first.bar:.0e}"
    assert f">{ratio}</td></tr>" in views.html(wrong)


def test_colour_changes_no_column(results):
    import re

    for result in results:
        report = result.report(80)
        assert re.sub("\x1b\\[[0-9;]*m", "", views.coloured(report)) == report
        assert "\x1b[" in views.coloured(report)


def test_no_colour_where_somebody_says_no_or_rich_is_missing(shell, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shell.colors = "linux"
    assert views.shows_colour(shell)
    with monkeypatch.context() as patch:
        patch.setenv("NO_COLOR", "1")
        assert not views.shows_colour(shell)
    with monkeypatch.context() as patch:
        patch.setenv("TERM", "dumb")
        assert not views.shows_colour(shell)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "rich", None)
        assert not views.shows_colour(shell)
    shell.colors = "nocolor"
    assert not views.shows_colour(shell)


def test_text_for_terminals_that_know_no_unicode(results):
    for result in results:
        words = views.plain(result.report(80), "ascii")
        assert words.isascii()
        assert "?" not in words.replace("? ", "")
        assert views.plain(result.report(80), "utf-8") == result.report(80)


def test_streams_that_know_no_unicode(shell, results, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    shell.run_cell(
        "def soft(X): return fg.softmax(X)\ndef dsoft(X, g): return fg.softmax.vjp(X, g)"
    )
    shell.run_line_magic("gradcheck", "soft(X)")
    shell.run_line_magic("profile_loss", "-t 0.01 --save a fg.softmax(X)")
    shell.run_line_magic("profile_loss", "-t 0.01 --save b fg.softmax(X) --compare a")
    shell.run_line_magic("profile_loss", "--compare a,b")
    for result in results[:3]:
        print(result)
    stream.flush()
    text = stream.buffer.getvalue().decode("ascii")
    assert "OK PASS  soft   v^T|d/dX (6, 4) float64" in text
    assert "X FAIL  cross_entropy" in text
