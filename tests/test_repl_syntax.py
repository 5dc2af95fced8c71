"""How the text behind a magic is read: pure functions, without a shell."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("IPython")

from fastgrad.repl import syntax
from fastgrad.repl.magics import FastgradMagics
from fastgrad.repl.syntax import Misuse

PARSER = FastgradMagics.gradcheck.parser


def split(line):
    words, expression = syntax.split(line, PARSER)
    return vars(PARSER.parse_args(words)), expression


@pytest.mark.parametrize(
    "expression",
    [
        "f(x, -1)",
        "f(x, -n)",
        "-f(x)",
        "f(x, 'a --top 3 b')",
        'f(x, "it\'s")',
        "f(x, key='--top')",
        'f("""a # b""", x)',
        "f(x[1:3, ::-1], {'a': [1, 2]}, lambda v: v - 1)",
        "f(x, y=-1,  z = 'two  blanks')",
        "f(x)(y) - g(x) --y",
        "f(x, '\\'')",
    ],
)
def test_the_expression_survives_untouched(expression):
    options, found = split(expression)
    assert found == expression
    assert options == split("")[0]
    given = {**options, "top": 3, "no_raise": True}
    assert split(f"--top 3 -k {expression}") == (given, found)
    assert split(f"{expression} --top 3 --no-raise") == (given, found)


@pytest.mark.parametrize(
    "line",
    [
        "-v r --top 3 -k f(x, -1)",
        "-n8 -v r --top=3 -k f(x, -1)",
        "-k f(x, -1) --top 3 -v r",
        "-k -v r f(x, -1) --top=3",
        "-v=r -k f(x, -1) --top 3;",
        "  -v r  -k  --top 3  --  f(x, -1)  ",
        "f(x, -1) --top 3 --no-raise -v r",
        "-k -v r --top 3 f(x, -1);",
    ],
)
def test_options_stand_before_or_behind(line):
    options, expression = split(line)
    assert (options["variable"], options["top"], options["no_raise"]) == ("r", 3, True)
    assert expression == "f(x, -1)"


def test_options_that_are_expressions():
    options, expression = split("--grad lambda x: x f(x) --ref g")
    assert (options["grad"], expression) == ("lambda", "x: x f(x)")
    options, expression = split('--grad "lambda x: x - 1" f(x) --ref (lambda x: x)')
    assert (options["grad"], options["ref"]) == ("lambda x: x - 1", "(lambda x: x)")
    assert expression == "f(x)"
    assert split("--rtol -1 f(x)")[0]["rtol"] == -1  # refused later, by the check


def test_two_minus_signs_end_the_options():
    assert split("-- f(x) --top")[1] == "f(x) --top"
    assert split("f(x) --top 3 # as --top 2") == split("--top 3 f(x)")
    assert split("f(x) # --top 3") == (split("")[0], "f(x) # --top 3")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--wtr X f(X)", "there is no option --wtr; did you mean --wrt?"),
        ("--zzzzz f(X)", "there is no option --zzzzz; see the magic's help with ?"),
        ("--strict=1 f(X)", "--strict takes no value."),
        ("f(X) --top", "--top needs a value."),
        ("f(X) --top 3 g(X)", "'g(X)' stands behind the options; the call goes before or after"),
    ],
)
def test_misused_options(line, message):
    with pytest.raises(Misuse) as caught:
        split(line)
    assert str(caught.value).startswith(message)


def test_a_call_is_taken_apart():
    names = {"f": print, "X": np.ones(3), "o": {"k": 1}, "more": (1, 2)}
    call = syntax.call("f(X, X[:2], *more, sep='', **o)", names)
    assert call.function is print
    assert call.args[0] is names["X"]
    assert (len(call.args[1]), *call.args[2:]) == (2, 1, 2)
    assert call.kwargs == {"sep": "", "k": 1}
    assert call.names == ("X", "X[:2]", "more[0]", "more[1]")


def test_arguments_are_evaluated_once():
    count = []
    syntax.call("print(count.append(1))", {"count": count})
    assert count == [1]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "there is nothing to call; type a call such as"),
        ("f(", "'f(' is no Python expression: '(' was never closed."),
        ("f(x) -k", "'f(x) -k'"),
        ("loss(weight)", "name 'weight' is not defined; did you mean 'weights'?"),
        ("weights", "'weights' is no call"),
        ("weights(1)", "weights is no function but ndarray."),
    ],
)
def test_what_is_no_call(expression, message):
    names = {"weights": np.ones(2), "loss": len}
    with pytest.raises(Misuse) as caught:
        syntax.call(expression, names)
    assert str(caught.value).startswith(message)


def test_names_bound_within_an_expression_are_defined():
    names = {"f": len}
    assert syntax.call("f([i * j for i in range(3) for j in (lambda k: [k])(i)])", names).args


def test_any_expression_of_given_variables():
    names = {"X": np.ones((2, 2)), "W": np.arange(2.0), "np": np}
    call = syntax.call_of("((X @ W) ** 2).sum()", "W", names)
    assert call.function(np.ones(2)) == 8.0
    assert (call.args, call.names) == ((names["W"],), ("W",))
    assert syntax.call_of("np.sum(W)", "W", names).function is np.sum
    assert syntax.call_of("np.sum(W ** 2)", "W", names).function(np.ones(2)) == 2
    with pytest.raises(Misuse, match="'V' is no variable"):
        syntax.call_of("(W ** 2).sum()", "V", names)


def test_the_gradient_is_found_by_name():
    assert syntax.find_gradient("f", None, {"f_grad": len}) == ("f_grad", len)
    assert syntax.find_gradient("f", None, {"d_f": len, "df": 1}) == ("d_f", len)
    assert syntax.find_gradient("f", None, {}) is None
    assert syntax.find_gradient("partial(f)", None, {"df": len}) is None
    assert syntax.find_gradient("lambda o: o.f", None, {"df": len}) is None
    with pytest.raises(Misuse, match="both f_grad and df could be the gradient"):
        syntax.find_gradient("f", None, {"df": len, "f_grad": len})


def test_the_gradient_of_a_method_is_on_its_owner():
    owner = SimpleNamespace(f=abs, f_grad=len)
    call = syntax.call("o.f(1)", {"o": owner})
    assert (call.function, call.owner) == (abs, owner)
    assert syntax.find_gradient("o.f", owner, {"df": min}) == ("o.f_grad", len)
    assert syntax.find_gradient("o.g", owner, {"g_grad": min}) is None


END = "the cell must end with its gradients: a dict by name, a tuple, or an array"
BODY = """Z = X @ W
Z += 1
loss = (Z ** 2).sum() / 2
"""


def test_backpropagation_in_a_cell():
    names = {"X": np.ones((3, 2)), "W": np.ones((2, 1))}
    f, gradients, wrt = syntax.backprop(BODY + "{'W': X.T @ Z}", "loss", names, [])
    assert wrt == ("W",)
    assert f(np.zeros((2, 1))) == 1.5
    np.testing.assert_array_equal(gradients["W"], np.full((2, 1), 9.0))
    assert set(names) - {"__builtins__"} == {"X", "W"}
    _, gradients, wrt = syntax.backprop(BODY + "X.T @ Z, Z @ W.T", "loss", names, ["W", "X"])
    assert wrt == ("W", "X")
    assert len(gradients) == 2


def test_a_cell_does_not_write_into_the_users_arrays():
    names = {"X": np.ones(3)}
    f, _, _ = syntax.backprop("X *= 2\nloss = X.sum()\n{'X': 2 * X}", "loss", names, [])
    assert f(np.ones(3)) == 6.0
    assert names["X"].tolist() == [1, 1, 1]


def test_a_cell_does_not_write_into_arrays_in_lists_and_dicts_either():
    W = np.ones(3)
    names = {"W": W, "layers": [{"W": W, "dW": np.zeros(3)}]}
    body = "layer = layers[0]\nlayer['dW'] += 2 * W\nloss = (W ** 2).sum()\nlayer['dW']"
    f, gradient, _ = syntax.backprop(body, "loss", names, ["W"])
    assert f(np.zeros(3)) == 0.0
    assert gradient.tolist() == [2, 2, 2]
    assert names["layers"][0]["dW"].tolist() == [0, 0, 0]


def test_the_gradients_of_a_cell_are_those_of_its_first_run():
    names = {"W": np.ones(3)}
    exec(
        "import numpy as np\nkept = np.empty(3)\ndef slope(W): return np.multiply(2, W, kept)",
        names,
    )
    body = "G = slope(W)\nloss = (W ** 2).sum()\nG"
    f, gradient, _ = syntax.backprop(body, "loss", names, ["W"])
    assert f(np.zeros(3)) == 0.0
    assert gradient.tolist() == [2, 2, 2]


HELPED = {"W": np.ones(2), "X": np.ones((3, 2))}


@pytest.fixture
def helped():
    """A namespace with a function that reads one of its variables, and a variable to overwrite."""
    names = {**HELPED, "Z": "mine"}
    exec("def forward(X): return X @ W", names)
    return names


def test_functions_that_a_cell_calls_see_what_moves(helped):
    before = dict(helped)
    body = "Z = forward(X)\nfresh = Z\nloss = (Z ** 2).sum() / 2\nX.T @ Z"
    f, gradient, _ = syntax.backprop(body, "loss", helped, ["W"])
    assert gradient.tolist() == [6, 6]
    assert [f(np.zeros(2)), f(np.ones(2))] == [0, 6]
    assert helped == before


def test_functions_in_an_expression_see_what_moves(helped):
    before = dict(helped)
    f = syntax.call_of("(Z := forward(X)).sum()", "W", helped).function
    assert [f(np.zeros(2)), f(np.ones(2))] == [0, 6]
    assert helped == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_what_moves_is_put_back_after_an_error(helped, stop):
    def refuse(W):
        raise stop

    helped["refuse"] = refuse
    before = dict(helped)
    f = syntax.call_of("not refuse(W)", "W", helped).function
    with pytest.raises(stop):
        f(np.zeros(2))
    assert helped == before


def test_two_checks_at_once_do_not_keep_each_others_values():
    inside, other_inside, over = (threading.Event() for _ in range(3))

    def first(W):
        inside.set()
        other_inside.wait(0.2)  # in vain: the other has to wait

    def second(W):
        other_inside.set()
        over.wait(10)

    names = {"W": 1, "first": first, "second": second}

    def run():
        syntax.call_of("not first(W)", "W", names).function(2)
        over.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert inside.wait(10)
    syntax.call_of("not second(W)", "W", names).function(3)
    thread.join()
    assert names["W"] == 1


@pytest.mark.parametrize(
    ("body", "wrt", "message"),
    [
        (BODY, [], f"{END}."),
        ("", [], f"{END}."),
        (BODY + "(X, W)", [], "say what the gradients are of: --wrt W,b"),
        (BODY + "{'W': 1}", ["X"], "the dict at the end has no 'X'; it has W."),
        (BODY + "{'V': 1}", [], "'V' is no variable that exists before the cell."),
        ("Z = X @ U\n{'X': Z}", [], "name 'U' is not defined"),
        ("loss = 1\nprint()", ["X"], f"{END}; its last line gives None."),
        ("Z = X\n{'X': Z}", [], "the cell sets no variable 'loss'; name the loss with --value."),
        ("loss + 1", ["X"], "the cell sets no variable 'loss'; name the loss with --value."),
    ],
)
def test_misused_cells(body, wrt, message):
    names = {"X": np.ones((3, 2)), "W": np.ones((2, 1)), "loss": "of another cell"}
    with pytest.raises(Misuse) as caught:
        syntax.backprop(body, "loss", names, wrt)
    assert str(caught.value).startswith(message)


def test_a_timed_cell_is_its_call_or_a_function_of_its_arrays():
    names = {"X": np.ones(3), "k": 2, "np": np}
    call = syntax.timed("np.multiply(X, k)", names)
    assert call.function is np.multiply
    call = syntax.timed("import math\nY = X * k\nY.sum() + math.pi * 0", names)
    assert call.names == ("X",)
    assert call.function(np.arange(3)) == 6
    assert "Y" not in names
    with pytest.raises(Misuse, match="the cell is empty"):
        syntax.timed("", names)


@pytest.mark.parametrize(
    ("body", "read"),
    [
        ("Z = X @ X\nZ.sum()", "X"),
        ("Z.sum()\nZ = X", "XZ"),
        ("Z = Z @ X", "XZ"),
        ("Z -= X", "XZ"),
        ("Z -= Z.mean()", "Z"),
        ("Z[0] = X[0]", "XZ"),
        ("n += 1", "n"),
        ("Y = [Z.sum() for Z in X]", "X"),
        ("Y = [Z.sum() for Z in X]\nY.append(Z)", "XZ"),
        ("Y = {n: Z for n, Z in enumerate(X)}", "X"),
        ("f = lambda Z: Z + n\nf(X)", "X"),
        ("def f(Z): return Z + n\nf(X)", "X"),
        ("def Z(X): return X\nZ(X)", "X"),
        ("for n, Z in enumerate(X):\n    Y = Z\nelse:\n    Y = X", "X"),
        ("if n:\n    Z = X\nZ.sum()", "XZ"),
        ("if n:\n    Z = X\nelse:\n    Y = Z", "XZ"),
        ("try:\n    Z = X\nfinally:\n    Z.sum()", "XZ"),
        ("with open('/dev/null') as n:\n    Z = X\nZ.sum()", "X"),
        ("import math as Z\nZ.exp(X[0])", "X"),
        ("(Z := X)\nZ.sum()", "X"),
    ],
)
def test_a_timed_cell_takes_what_it_reads_before_it_sets_it(body, read):
    names = {"X": np.ones(3), "Z": np.ones(3), "n": 2}
    call = syntax.timed(body, names)
    assert "".join(call.names) == read
    call.function(*call.args)


def test_a_timed_cell_does_not_change_the_users_variables():
    names = {"W": np.ones(3), "steps": [1]}
    call = syntax.timed("W -= 1\nsteps += [2]\nW", names)
    assert call.function(*call.args).tolist() == [0, 0, 0]
    assert (names["W"].tolist(), names["steps"]) == ([1, 1, 1], [1])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("Z = (X\nX", "line 1 of the cell is no Python: '(' was never closed."),
        ("Z = X\nyield Z", "line 2 of the cell is no Python: 'yield' outside function."),
    ],
)
def test_cells_that_are_no_python(body, message):
    names = {"X": np.ones(3)}
    with pytest.raises(Misuse) as caught:
        syntax.timed(body, names)
    assert str(caught.value) == message
    with pytest.raises(Misuse) as caught:
        syntax.backprop(body, "loss", names, [])
    assert str(caught.value) == message


def test_sizes_of_a_sweep():
    assert syntax.sizes("n=10:1e3:3") == ("n", [10, 100, 1000])
    assert syntax.sizes(" m = 1:4") == ("m", [1, 2, 3, 4])
    for text in ("n", "n=3", "n=3:1", "n=a:b", "n=1:10:0", "2=1:10"):
        with pytest.raises(Misuse, match="--sweep wants VAR=LOW:HIGH"):
            syntax.sizes(text)
