"""What is typed after a magic: options around an expression, and what the expression calls.

Nothing here needs a shell.  Two things make an ordinary option parser unfit: the expression may
hold quotes, blanks and minus signs, and people type options last.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import copy
import difflib
import inspect
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Names = dict[str, Any]

_QUOTE = re.compile(r"'''|\"\"\"|'|\"")
_ONE_AT_A_TIME = threading.RLock()
"""A check in another subshell would take the values of this one for the user's, and keep them."""


class Misuse(Exception):
    """What was typed cannot be meant; the message is one line that says what to type."""


# ---- options and expression ---------------------------------------------------------------------


def split(line: str, parser: argparse.ArgumentParser) -> tuple[list[str], str]:
    """Cut a line into the words of its options and the untouched expression.

    Options stand before the expression, or after it if they are long; ``--`` ends them.
    """
    known = parser._option_string_actions
    words: list[str] = []
    rest = line.strip().removesuffix(";").rstrip()  # the shell has seen that it silences
    while rest.startswith("-"):
        if re.match(r"--(\s|$)", rest):
            return words, rest[2:].strip()
        taken, rest = _option(rest, known)
        if not taken:
            break
        words += taken
    end = _trailing(rest, known)
    expression, rest = rest[:end].strip(), rest[end:].strip()
    while rest and not rest.startswith("#"):
        taken, rest = _option(rest, known)
        if not taken:
            raise Misuse(f"{rest!r} stands behind the options; the call goes before or after all.")
        words += taken
    return words, expression


def _option(text: str, known: Mapping[str, argparse.Action]) -> tuple[list[str], str]:
    """The words of the first option in the text, and what follows it; no words if it has none."""
    match = re.match(r"(--[A-Za-z][\w-]*|-[A-Za-z](?![\w(.\[]))(=?)\s*", text)
    if match is None:
        match = re.match(r"(-[A-Za-z])()(?=\d)", text)  # -n8; -np would be a variable
    if match is None or match[1] not in known:
        if text.startswith("--") and match is not None:
            near = difflib.get_close_matches(match[1], [k for k in known if k[1] == "-"], 1)
            hint = f"; did you mean {near[0]}?" if near else "; see the magic's help with ?"
            raise Misuse(f"there is no option {match[1]}{hint}")
        return [], text
    rest = text[match.end() :]
    if known[match[1]].nargs == 0:
        if match[2]:
            raise Misuse(f"{match[1]} takes no value.")
        return [match[1]], rest
    end = _word(rest)
    if end == 0:
        raise Misuse(f"{match[1]} needs a value.")
    value = rest[:end]
    quote = _QUOTE.match(value)
    if quote and _string(value, quote) == len(value):
        value = ast.literal_eval(value)
    # In one word, so that a value may begin with a minus sign.
    joined = f"{match[1]}={value}" if match[1].startswith("--") else f"{match[1]}{value}"
    return [joined], rest[end:].lstrip()


def _string(text: str, quote: re.Match[str]) -> int:
    """Where the string ends that begins with `quote`."""
    at = quote.end()
    while at < len(text):
        if text[at] == "\\":
            at += 2
        elif text.startswith(quote[0], at):
            return at + len(quote[0])
        else:
            at += 1
    return len(text)


def _outside(text: str) -> list[int]:
    """The places that are in no bracket, string or comment."""
    found, depth, at = [], 0, 0
    while at < len(text):
        quote = _QUOTE.match(text, at)
        if quote:
            at = _string(text, quote)
            continue
        if text[at] == "#":
            break
        depth += (text[at] in "([{") - (text[at] in ")]}")
        if depth <= 0:
            found.append(at)
        at += 1
    return found


def _word(text: str) -> int:
    """Where the first word ends: at a blank outside of brackets and strings."""
    return next((i for i in _outside(text) if text[i].isspace()), len(text.rstrip()))


def _trailing(text: str, known: Mapping[str, argparse.Action]) -> int:
    """Where the options behind the expression begin."""
    for i in _outside(text):
        match = re.compile(r"(?<=\s)--[A-Za-z][\w-]*(?=[\s=]|$)").match(text, i)
        if match and match[0] in known:
            return i
    return len(text)


# ---- the call -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A call taken apart: its function, its arguments, and how these were written."""

    function: Callable[..., Any]
    written: str
    """The function as typed: "fg.cross_entropy"."""
    args: tuple[Any, ...]
    kwargs: Names
    names: tuple[str, ...]
    """The positional arguments as typed."""
    owner: Any = None
    """What the function was looked up on: `fg` of "fg.cross_entropy"."""

    @property
    def name(self) -> str:
        """The last of dotted names, anything else as typed."""
        last = self.written.rpartition(".")[2]
        return last if re.fullmatch(r"[\w.]+", self.written) else self.written


def parse(expression: str) -> ast.expr:
    """The syntax tree of an expression."""
    if not expression:
        raise Misuse("there is nothing to call; type a call such as fg.cross_entropy(X, y).")
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except SyntaxError as error:
        late = (
            " Options of one letter go before the call." if re.search(r"\s-\w", expression) else ""
        )
        raise Misuse(f"{expression!r} is no Python expression: {error.msg}.{late}") from None


def call(expression: str, names: Names) -> Call:
    """Evaluate the function and the arguments of a call, each once, and do not call it."""
    tree = parse(expression)
    if not isinstance(tree, ast.Call):
        raise Misuse(
            f"{expression!r} is no call; type one such as fg.cross_entropy(X, y), or say what to "
            "vary and its gradient with --wrt and --grad."
        )
    check_names(tree, names)

    def value(node: ast.expr) -> Any:
        return eval(compile(ast.Expression(node), "<call>", "eval"), names)

    args: list[Any] = []
    written: list[str] = []
    for node in tree.args:
        if isinstance(node, ast.Starred):
            values = list(value(node.value))
            args += values
            written += [f"{ast.unparse(node.value)}[{i}]" for i in range(len(values))]
        else:
            args.append(value(node))
            written.append(ast.unparse(node))
    kwargs: Names = {}
    for keyword in tree.keywords:
        kwargs |= {keyword.arg: value(keyword.value)} if keyword.arg else value(keyword.value)
    if isinstance(tree.func, ast.Attribute):
        owner = value(tree.func.value)
        function = getattr(owner, tree.func.attr)
    else:
        owner, function = None, value(tree.func)
    if not callable(function):
        raise Misuse(f"{ast.unparse(tree.func)} is no function but {type(function).__name__}.")
    return Call(function, ast.unparse(tree.func), tuple(args), kwargs, tuple(written), owner)


def call_of(expression: str, wrt: str, names: Names) -> Call:
    """`call`, or for any other expression a function of the variables in `wrt`."""
    tree = parse(expression)
    variables = tuple(w.strip() for w in wrt.split(","))
    if isinstance(tree, ast.Call):
        arguments = [ast.unparse(a) for a in tree.args]
        keywords = [str(k.arg) for k in tree.keywords]
        if all(v.isdigit() or v in arguments or v in keywords for v in variables):
            return call(expression, names)
    check_names(tree, names)
    code = compile(ast.Expression(tree), "<expression>", "eval")
    bound = _bound(tree)
    if unknown := [v for v in variables if v not in names]:
        raise Misuse(f"--wrt: {unknown[0]!r} is no variable.")

    def f(*values: Any) -> Any:
        given = dict(zip(variables, values, strict=True))
        return _within(names, given, bound, lambda: eval(code, names))

    f.__name__ = expression
    f.__signature__ = _signature(variables)  # type: ignore[attr-defined]  # read by inspect
    return Call(f, expression, tuple(names[v] for v in variables), {}, variables)


def _signature(names: Sequence[str]) -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature([inspect.Parameter(n, kind) for n in names])


def check_names(tree: ast.AST, names: Names) -> None:
    """Refuse names that nothing defines, with those that are close."""
    bound = _bound(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load):
            continue
        if node.id not in names and node.id not in bound and not hasattr(builtins, node.id):
            near = difflib.get_close_matches(node.id, names, 1, cutoff=0.7)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise Misuse(f"name {node.id!r} is not defined{hint}")


def _bound(tree: ast.AST) -> set[str]:
    """The names that a text gives values itself, in whatever scope of it."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name) | ast.ExceptHandler(name=str(name)):
                found.add(name)
            case ast.alias(name=name, asname=other):
                found.add(other or name.partition(".")[0])
    return found


def _within(names: Names, values: Names, bound: set[str], run: Callable[[], Any]) -> Any:
    """What `run` returns while names have other values; these, and what it binds, do not stay.

    In the namespace itself, because there, not in a copy, the user's functions read variables.
    """
    with _ONE_AT_A_TIME:
        bound = bound | values.keys()
        before = {n: names[n] for n in bound if n in names}
        try:
            names.update(values)
            return run()
        finally:
            names.update(before)  # at once, and first: Ctrl-C must not come in between
            for n in bound - before.keys():
                names.pop(n, None)


def evaluate(expression: str, names: Names) -> Any:
    """The value of an option that is an expression."""
    tree = parse(expression)
    check_names(tree, names)
    return eval(compile(ast.Expression(tree), "<option>", "eval"), names)


# ---- the gradient -------------------------------------------------------------------------------


def gradient_names(written: str) -> tuple[str, ...]:
    """The names under which people keep the gradient of a function; none if it has no name."""
    if not re.fullmatch(r"[\w.]+", written):
        return ()
    owner, dot, name = written.rpartition(".")
    forms = (f"{name}_grad", f"grad_{name}", f"d{name}", f"d_{name}", f"{name}_vjp")
    return tuple(f"{owner}{dot}{form}" for form in forms)


def find_gradient(written: str, owner: Any, names: Names) -> tuple[str, Any] | None:
    """The one of these names that is defined, and its value, or None; two are refused.

    What belongs to a method is looked for on its owner only: a function elsewhere is another's.
    """
    found = {}
    for name in gradient_names(written):
        last = name.rpartition(".")[2]
        value = names.get(last) if owner is None else getattr(owner, last, None)
        if callable(value):
            found[name] = value
    if len(found) > 1:
        raise Misuse(f"both {' and '.join(found)} could be the gradient; choose one with --grad.")
    return next(iter(found.items()), None)


# ---- cells --------------------------------------------------------------------------------------


def statements(text: str, what: str) -> ast.Module:
    """The syntax tree of a cell, or of its setup."""
    try:
        tree = ast.parse(text)
        compile(tree, what, "exec")  # refuses what only functions may hold, as yield
    except SyntaxError as error:
        raise Misuse(f"line {error.lineno} of {what} is no Python: {error.msg}.") from None
    return tree


def backprop(
    body: str, value: str, names: Names, wrt: Sequence[str]
) -> tuple[Callable[..., Any], Any, tuple[str, ...]]:
    """A cell of hand-written backprop as a function, its gradients, and what they are of.

    The cell runs once as a whole for the gradients, which are its last expression; the function
    runs what is before that, and returns the variable `value`.  Neither leaves anything behind.
    """
    tree = statements(body, "the cell")
    if not tree.body or not isinstance(tree.body[-1], ast.Expr):
        raise Misuse("the cell must end with its gradients: a dict by name, a tuple, or an array.")
    check_names(tree, names)
    bound = _bound(tree)
    if value not in bound:
        raise Misuse(f"the cell sets no variable {value!r}; name the loss with --value.")
    prefix = compile(ast.Module(tree.body[:-1], []), "<%%gradcheck>", "exec")
    last = compile(ast.Expression(tree.body[-1].value), "<%%gradcheck>", "eval")
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    written = [n for n in read if _holds_arrays(names.get(n))]

    def run(given: Names, then: Callable[[], Any]) -> Any:
        # With copies of all arrays read, alone or in dicts and lists: the cell may write into them.
        fresh = copy.deepcopy({n: names[n] for n in written}) | given

        def whole() -> Any:
            exec(prefix, names)
            return then()

        return _within(names, fresh, bound, whole)

    # A copy, too: a function of the user may write the next gradients into the same arrays.
    gradients = run({}, lambda: copy.deepcopy(eval(last, names)))
    if gradients is None:
        raise Misuse(
            "the cell must end with its gradients: a dict by name, a tuple, or an array; its last "
            "line gives None."
        )
    if not wrt:
        if not isinstance(gradients, dict):
            raise Misuse("say what the gradients are of: --wrt W,b, or end the cell with a dict.")
        wrt = list(gradients)
    if isinstance(gradients, dict):
        if missing := [n for n in wrt if n not in gradients]:
            raise Misuse(
                f"the dict at the end has no {missing[0]!r}; it has {', '.join(gradients)}."
            )
        gradients = {n: gradients[n] for n in wrt}
    if unknown := [n for n in wrt if n not in names]:
        raise Misuse(f"{unknown[0]!r} is no variable that exists before the cell.")

    def loss(*values: Any) -> Any:
        return run(dict(zip(wrt, values, strict=True)), lambda: names[value])

    loss.__name__ = value
    loss.__signature__ = _signature(wrt)  # type: ignore[attr-defined]  # read by inspect
    return loss, gradients, tuple(wrt)


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(map(_holds_arrays, value))
    return isinstance(value, np.ndarray)


def timed(body: str, names: Names) -> Call:
    """A cell as a call: one that it is, or a function of the arrays that it reads.

    Also of the variables that it reads before it sets them: to a function they are its own.
    """
    tree = statements(body, "the cell")
    if not tree.body:
        raise Misuse("the cell is empty; write what is to be timed below the magic.")
    if len(tree.body) == 1 and isinstance(tree.body[0], ast.Expr):
        only = tree.body[0].value
        if isinstance(only, ast.Call):
            return call(ast.unparse(only), names)
    check_names(tree, names)
    order = _Order()
    order.visit(tree)
    bound = _bound(tree)
    read = sorted(
        n for n in order.read & names.keys() if n in bound or isinstance(names[n], np.ndarray)
    )
    if isinstance(tree.body[-1], ast.Expr):
        tree.body[-1] = ast.copy_location(ast.Return(tree.body[-1].value), tree.body[-1])
    definition = ast.parse(f"def cell({', '.join(read)}): pass").body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.body = tree.body
    scope = dict(names)
    module = ast.fix_missing_locations(ast.Module([definition], []))
    exec(compile(module, "<%%profile_loss>", "exec"), scope)
    # Copies of what it changes: W -= G would be done thousands of times to the user's W.
    args = tuple(copy.deepcopy(names[n]) if n in bound else names[n] for n in read)
    return Call(scope["cell"], "cell", args, {}, tuple(read))


class _Order(ast.NodeVisitor):
    """Follows statements in the order of a run: what may be read that they have not set before."""

    def __init__(self) -> None:
        self.read: set[str] = set()
        self.known: set[str] = set()

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.read |= {node.id} - self.known
        self.known |= {node.id}

    def visit_arg(self, node: ast.arg) -> None:
        self.known |= {node.arg}

    def visit_alias(self, node: ast.alias) -> None:
        self.known |= _bound(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.read |= {node.target.id} - self.known
        self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> None:
        before = set(self.known)
        first = {"generators": 0, "iter": 1, "value": 2}  # before what is named after them
        for name, field in sorted(ast.iter_fields(node), key=lambda f: first.get(f[0], 3)):
            if name in ("orelse", "handlers", "finalbody"):
                self.known = set(before)
            for part in field if isinstance(field, list) else [field]:
                if isinstance(part, ast.AST):
                    self.visit(part)
        branch = hasattr(node, "body") or hasattr(node, "generators")
        if branch and not isinstance(node, (ast.Module, ast.With)):
            self.known = before  # it may not have run, or has names of its own
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            self.known |= {node.name}


def reads(text: str, name: str) -> bool:
    """Whether statements or an expression read a variable."""
    read = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name))
    return any(n.id == name and isinstance(n.ctx, ast.Load) for n in read)


def sizes(text: str) -> tuple[str, list[int]]:
    """The variable and the values of ``n=1e3:1e6:7``: evenly spaced on a logarithmic scale."""
    match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*=\s*([^:]+):([^:]+)(?::(\d+))?\s*", text)
    bounds = match and [_number(match[2]), _number(match[3]), float(match[4] or 5)]
    if not match or not bounds or not 1 <= bounds[0] <= bounds[1] or bounds[2] < 1:
        raise Misuse(f"--sweep wants VAR=LOW:HIGH or VAR=LOW:HIGH:COUNT, not {text!r}.")
    low, high, count = bounds
    return match[1], sorted({round(n) for n in np.geomspace(low, high, int(count))})


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
