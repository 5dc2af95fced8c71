"""`%gradcheck` and `%profile_loss`: thin shells over `fg.gradcheck` and `fg.profile_loss`."""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil
import textwrap
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from IPython.core.error import UsageError
from IPython.core.magic import (
    Magics,
    line_cell_magic,
    magics_class,
    needs_local_scope,
    no_var_expand,
    output_can_be_silenced,
)
from IPython.core.magic_arguments import argument, magic_arguments
from traitlets import Bool, Float, Int

import fastgrad as fg
from fastgrad._maps import parameter_names
from fastgrad._profile.measure import swept
from fastgrad.repl import syntax, views
from fastgrad.repl.syntax import Misuse, Names

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell
    from matplotlib.figure import Figure

KINDS = ("grad", "vjp", "jvp", "jac", "hvp", "hess_diag")
MODES = ("auto", "full", "random", "rows", "complex")
PARTS = ("forward", "gradient", "both", "hvp", "vjp", "jvp")
SHORT_PARTS = {"fwd": "forward", "bwd": "gradient"}


class GradcheckError(Exception):
    """A gradient that is wrong; `result` is the report, which was shown before."""

    def __init__(self, result: Any) -> None:
        super().__init__(f"{result.message} Details in _gradcheck.")
        self.result = result

    def _render_traceback_(self) -> list[str]:
        # IPython shows these lines instead of a traceback: where the magic raised helps nobody.
        return textwrap.wrap(f"GradcheckError: {self}", shutil.get_terminal_size().columns)


def _parts(text: str) -> list[str]:
    parts = [SHORT_PARTS.get(p.strip(), p.strip()) for p in text.split(",")]
    if unknown := [p for p in parts if p not in PARTS]:
        raise ArgumentTypeError(f"must be of {', '.join(PARTS)}; got {unknown[0]!r}")
    return parts


@contextlib.contextmanager
def _usage(package: str) -> Iterator[None]:
    """Turn misuse into UsageError: what we say, and what the function itself refuses at once.

    Exactly UsageError: IPython shows subclasses with a traceback.  Errors of the user's functions
    pass unchanged.
    """
    try:
        yield
    except Misuse as error:
        raise UsageError(str(error)) from None
    except (TypeError, ValueError) as error:
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        if last is None or not last.tb_frame.f_globals["__name__"].startswith(package):
            raise
        raise UsageError(str(error)) from None


@magics_class
class FastgradMagics(Magics):
    """Check gradients and measure losses."""

    shell: InteractiveShell

    rtol = Float(None, allow_none=True, help="relative accuracy that a gradient must have").tag(
        config=True
    )
    dirs = Int(4, min=1, help="random directions").tag(config=True)
    budget = Float(10.0, help="seconds that a check may take").tag(config=True)
    raise_on_fail = Bool(True, help="raise an error after a failed check").tag(config=True)
    top = Int(10, min=1, help="elements that a report lists").tag(config=True)
    peak_bandwidth = Float(
        None, allow_none=True, help="GB/s to compare with, instead of those measured here"
    ).tag(config=True)

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self.saved: dict[str, fg.LossProfile] = {}
        self._shown: tuple[int, int] | None = None
        """Identity of the result last reported, and the cell that did so."""

    # ---- %gradcheck -----------------------------------------------------------------------------

    @no_var_expand
    @needs_local_scope
    @output_can_be_silenced
    @line_cell_magic
    @magic_arguments()
    @argument("-w", "--wrt", help="inputs to check, as typed: X,W or 0,2; default: all of floats")
    @argument("-g", "--grad", metavar="EXPR", help="the gradient: a function of the same arguments")
    @argument("--kind", choices=KINDS, help="what the gradient is; default: found from the result")
    @argument("-m", "--mode", choices=MODES, default="auto", help="which elements are checked")
    @argument("-n", "--dirs", type=int, metavar="K", help="random directions (4)")
    @argument("--miss", type=float, metavar="P", help="probability of a miss (1e-6)")
    @argument("--detect", type=float, metavar="R", help="directions until errors of R are found")
    @argument("--points", type=int, default=1, metavar="N", help="check at N points near x (1)")
    @argument("--rtol", type=float, help="accuracy demanded of the gradient")
    @argument("--atol", type=float, default=0.0, help="absolute error that is let pass (0)")
    @argument("--eval-dtype", choices=("same", "float64"), help="precision of the numeric side")
    @argument("--ref", metavar="EXPR", help="take the numeric side from another function")
    @argument("--order", type=int, choices=(1, 2), default=1, help="2: second derivatives too")
    @argument("--budget", type=float, metavar="S", help="seconds that the check may take (10)")
    @argument("--max-evals", type=int, metavar="N", help="evaluations that it may take")
    @argument("--seed", type=int, default=0, help="of random directions and samples (0)")
    @argument("--nondet", type=float, default=0.0, metavar="T", help="tolerated run-to-run change")
    @argument("--top", type=int, metavar="N", help="elements that the report lists (10)")
    @argument("--value", default="loss", metavar="NAME", help="%%%%gradcheck: variable of the loss")
    @argument("-k", "--no-raise", action="store_true", help="do not raise when the check fails")
    @argument("--strict", action="store_true", help="raise when it cannot tell, too")
    @argument("-q", "--quiet", action="store_true", help="show no report")
    @argument("-v", dest="variable", metavar="NAME", help="store the result in this variable")
    @argument("-o", action="store_true", help="accepted as by %%timeit; the result is returned")
    @argument("--plot", action="store_true", help="draw the errors; needs matplotlib")
    @argument("--save", metavar="FILE", help="write the whole result as JSON")
    def gradcheck(self, line: str, cell: str | None = None, local_ns: Names | None = None) -> Any:
        """Check the gradient of a function against differences of its values.

          %gradcheck fg.cross_entropy(X, y)
          %gradcheck my_loss(X, y) --grad my_gradient
          %gradcheck -k -v r my_loss(X, y)     # the result in r, no error

        The arguments are evaluated once; arrays of floats among them are varied.  The gradient is
        what the function carries (.grad, .value_and_grad, .vjp), a pair (value, gradient) that it
        returns, or my_loss_grad, grad_my_loss, dmy_loss or d_my_loss.  Options may come last.

        %%gradcheck checks backpropagation written out in a cell, which ends with the gradients:

          %%gradcheck --wrt W,b
          Z = X @ W + b
          loss, dZ = fg.cross_entropy.value_and_grad(Z, y)
          {"W": X.T @ dZ, "b": dZ.sum(0)}

        The result is returned, and kept in _gradcheck.
        """
        # Itself, not a copy, unless this is called in a function.
        names = self.shell.user_ns
        if local_ns is not None and local_ns is not names:
            names = {**names, **local_ns}
        with _usage("fastgrad._gradcheck"):
            options, expression = self._options("gradcheck", line)
            if options.save and not options.save.endswith(".json"):
                raise Misuse(f"--save wants a file that ends with .json, not {options.save!r}.")
            given: dict[str, Any] = {
                "mode": options.mode,
                "atol": options.atol,
                "eval_dtype": options.eval_dtype,
                "order": options.order,
                "detect": options.detect,
                "points": options.points,
                **({} if options.miss is None else {"miss": options.miss}),
                "max_evals": options.max_evals,
                "seed": options.seed,
                "nondet": options.nondet,
                "rtol": self.rtol if options.rtol is None else options.rtol,
                "directions": self.dirs if options.dirs is None else options.dirs,
                "budget": self.budget if options.budget is None else options.budget,
                "top": self.top if options.top is None else options.top,
            }
            if options.ref:
                given["reference"] = _function(options.ref, names, "--ref")
            note = ""
            if cell is None:
                if options.wrt and options.grad:
                    call = syntax.call_of(expression, options.wrt, names)
                else:
                    call = syntax.call(expression, names)
                f, args, kwargs = call.function, call.args, call.kwargs
                given["wrt"] = _positions(options.wrt, call)
                f, given["grad"], kind, note = _differentiable(call, options.grad, names)
                given["kind"] = options.kind or kind
                given["name"] = None if hasattr(f, "__name__") else call.name
            else:
                if expression:
                    raise Misuse(
                        f"%%gradcheck takes options only, not {expression!r}: what is checked is "
                        "the cell. For a call use %gradcheck."
                    )
                if options.grad:
                    raise Misuse("%%gradcheck takes no --grad: the cell ends with its gradients.")
                wrt = [w.strip() for w in options.wrt.split(",")] if options.wrt else []
                f, given["grad"], of = syntax.backprop(cell, options.value, names, wrt)
                args, kwargs = tuple(names[n] for n in of), {}
                given["wrt"], given["kind"] = of, options.kind or "grad"
            with self._reporting(options, note, "_gradcheck") as (progress, give):
                result = fg.gradcheck(f, *args, kwargs=kwargs, callback=progress, **given)
                give(result)
        wrong = result.verdict == "FAIL" or (options.strict and not result)
        if wrong and self.raise_on_fail and not options.no_raise:
            raise GradcheckError(result)
        return result

    # ---- %profile_loss --------------------------------------------------------------------------

    @no_var_expand
    @needs_local_scope
    @output_can_be_silenced
    @line_cell_magic
    @magic_arguments()
    @argument("-r", "--ref", metavar="EXPR", help="compare with this function, or none")
    @argument("-g", "--grad", metavar="EXPR", help="the gradient: a function of the same arguments")
    @argument("--what", type=_parts, metavar="PARTS", help=f"of {','.join(PARTS)}; default: all")
    @argument("-t", "--time", type=float, default=2.0, metavar="S", help="seconds to measure (2)")
    @argument("--rounds", type=int, default=15, help="the fewest rounds (15)")
    @argument("--threads", type=int, metavar="N", help="threads of fastgrad meanwhile")
    @argument("--cold", action="store_true", help="empty the caches before every call")
    @argument("--bytes", metavar="EXPR", help="bytes that a call moves; default: all arrays once")
    @argument("--flops", metavar="EXPR", help="operations of a call, to show their rate")
    @argument("--no-mem", action="store_true", help="do not measure memory")
    @argument("--sweep", metavar="VAR=LOW:HIGH[:N]", help="repeat for sizes of a variable")
    @argument("--save", metavar="NAME", help="keep the profile under a name, or in a .json file")
    @argument("--compare", metavar="NAMES", help="show next to kept profiles, variables or files")
    @argument("-q", "--quiet", action="store_true", help="show no report")
    @argument("-v", dest="variable", metavar="NAME", help="store the result in this variable")
    @argument("-o", action="store_true", help="accepted as by %%timeit; the result is returned")
    @argument("--plot", action="store_true", help="draw the times; needs matplotlib")
    def profile_loss(
        self, line: str, cell: str | None = None, local_ns: Names | None = None
    ) -> Any:
        """Measure a loss: time, traffic, memory, accuracy, against NumPy and this machine.

          %profile_loss fg.cross_entropy(X, y)
          %profile_loss my_loss(X, y) --ref old_loss
          %profile_loss fg.softmax(X[:n]) --sweep n=1e2:1e6

        All derivatives that the function carries are measured; built-ins against the usual NumPy
        idiom.  A sweep evaluates everything typed once per size.

        %%profile_loss measures a cell; what stands on its first line runs once, untimed:

          %%profile_loss Z = X @ W
          fg.softmax(Z)

        The result is returned, and kept in _profile.
        """
        names = {**self.shell.user_ns, **(local_ns or {})}
        with _usage("fastgrad._profile"):
            options, expression = self._options("profile_loss", line)
            others = self._saved(options.compare, names)
            if cell is None and not expression and others:
                base, *_ = others
                print(views.printable(others.pop(base).compare(others, name=base), self.shell))
                return None
            if options.threads is not None and options.threads < 1:
                raise Misuse(f"--threads must be 1 at least; got {options.threads}.")
            variable, sizes = syntax.sizes(options.sweep) if options.sweep else ("", [])
            options.time /= len(sizes) or 1  # --time is that of all sizes together
            scopes = ({**names, variable: n} for n in sizes) if sizes else [names]
            runs = (self._prepared(options, expression, cell, scope) for scope in scopes)
            run, note = next(runs)
            if sizes and not syntax.reads(f"{expression}\n{cell or ''}", variable):
                raise Misuse(
                    f"--sweep: nothing here reads {variable}, so that every size would be the "
                    f"same; write it where the size stands, as in X[:{variable}]."
                )
            with self._reporting(options, note, "_profile") as (progress, give):
                if sizes:
                    # Not sweep=, of which only the positional arguments depend on the size.
                    all_runs = itertools.chain([(run, note)], runs)
                    result = swept(sizes, lambda _: next(all_runs)[0](callback=progress))
                else:
                    result = run(callback=progress)
                give(result)
        if others and not options.quiet:
            print(views.printable(result.compare(others), self.shell))
        return result

    def _prepared(
        self, options: Any, expression: str, cell: str | None, names: Names
    ) -> tuple[Callable[..., fg.LossProfile], str]:
        """What was typed as a call of `fg.profile_loss`, lacking only callback=; and a note on it.

        What a cell has on its first line is run here, in `names`.
        """
        if cell is None:
            call = syntax.call(expression, names)
        else:
            exec(compile(syntax.statements(expression, "the setup"), "<setup>", "exec"), names)
            call = syntax.timed(cell, names)
        given: dict[str, Any] = {
            "kwargs": call.kwargs,
            "names": call.names,
            "name": None if hasattr(call.function, "__name__") else call.name,
            "seconds": options.time,
            "rounds": options.rounds,
            "threads": options.threads,
            "cold": options.cold,
            "memory": not options.no_mem,
            "what": options.what,
        }
        if options.ref:
            none = options.ref.lower() == "none"
            given["reference"] = None if none else _reference(options.ref, names)
        for option, text in (("traffic", options.bytes), ("flops", options.flops)):
            if text:
                given[option] = syntax.evaluate(text, names)
        if self.peak_bandwidth:
            given["ceiling"] = self.peak_bandwidth * 1e9
        note = ""
        if options.grad:
            given["grad"] = _function(options.grad, names, "--grad")
        elif not any(hasattr(call.function, d) for d in ("grad", "value_and_grad", "vjp")):
            found = syntax.find_gradient(call.written, call.owner, names)
            if found and not found[0].endswith("_vjp"):
                given["grad"], note = found[1], f"gradient: {found[0]}"
        return functools.partial(fg.profile_loss, call.function, *call.args, **given), note

    def _saved(self, text: str | None, names: Names) -> dict[str, fg.LossProfile]:
        found = {}
        for name in (n.strip() for n in (text or "").split(",") if n.strip()):
            if name.endswith(".json"):
                found[Path(name).stem] = _profile_in(Path(name))
            elif isinstance(p := self.saved.get(name, names.get(name)), fg.LossProfile):
                found[name] = p
            else:
                kept = ", ".join(self.saved) or "none"
                raise Misuse(f"there is no profile {name!r}; kept with --save: {kept}.")
        return found

    # ---- what both do ---------------------------------------------------------------------------

    def _options(self, magic: str, line: str) -> tuple[Any, str]:
        parser = getattr(self, magic).parser
        words, expression = syntax.split(line, parser)
        options = parser.parse_args(words)
        if options.variable and not options.variable.isidentifier():
            raise Misuse(f"-v wants the name of a variable, not {options.variable!r}.")
        file = Path(options.save or "")
        if file.suffix == ".json" and not file.parent.is_dir():
            raise Misuse(f"--save: there is no folder {str(file.parent)!r}.")
        return options, expression

    @contextlib.contextmanager
    def _reporting(
        self, options: Any, note: str, hidden: str
    ) -> Iterator[tuple[views.Progress, Callable[[Any], None]]]:
        """Progress during a run, and the function that takes its result; a partial one as well."""
        progress = views.Progress(self.shell, options.quiet)

        def give(result: Any) -> None:
            self._shown = id(result), self.shell.execution_count
            self.shell.user_ns[hidden] = result
            if options.variable:
                self.shell.user_ns[options.variable] = result
            if not options.quiet:
                figure, hint = self._figure(result) if options.plot else (None, "")
                progress.replace(views.bundle(result, self.shell, note + hint, figure))
            if options.save:  # last, because a disk can be full
                self._save(result, options.save)

        try:
            yield progress, give
        except KeyboardInterrupt as stop:
            if (partial := getattr(stop, "result", None)) is not None:
                give(partial)
                # The report says where it was; IPython shows this instead of a traceback.
                vars(stop)["_render_traceback_"] = lambda: ["KeyboardInterrupt"]
            raise
        finally:
            progress.close()

    def _save(self, result: Any, name: str) -> None:
        if name.endswith(".json"):
            Path(name).write_text(result.to_json(), "utf-8")
        else:
            self.saved[name] = result

    def _figure(self, result: Any) -> tuple[Figure | None, str]:
        """What --plot shows, or a hint where it cannot."""
        try:
            drawn = isinstance(result, fg.LossProfile)
            return (result.plot() if drawn else views.gradcheck_figure(result)), ""
        except ModuleNotFoundError:
            return None, " (--plot needs matplotlib: pip install 'fastgrad[plot]')"

    def was_shown(self, result: Any) -> bool:
        """Whether the cell that runs has reported this result: then a line is enough."""
        return self._shown == (id(result), self.shell.execution_count)


# ---- what the options mean --------------------------------------------------------------------


def _function(text: str, names: Names, option: str) -> Any:
    """The value of an option that must be a function."""
    value = syntax.evaluate(text, names)
    if not callable(value):
        raise Misuse(f"{option} wants a function; {text} is {type(value).__name__}.")
    return value


def _profile_in(file: Path) -> fg.LossProfile:
    """A profile that --save has written."""
    try:
        return fg.LossProfile.from_json(file.read_text("utf-8"))
    except OSError as error:
        raise Misuse(f"--compare: {file} cannot be read: {error.strerror}.") from None
    except (ValueError, LookupError, TypeError):
        raise Misuse(f"--compare: {file} holds no profile, as --save writes it.") from None


def _reference(text: str, names: Names) -> Any:
    """A function to compare with, with its gradient if one has the right name."""
    f = _function(text, names, "--ref")
    if text.isidentifier() and not isinstance(f, (fg.Loss, fg.Map)):
        found = syntax.find_gradient(text, None, names)
        if found and not found[0].endswith("_vjp"):
            return fg.Loss(f, grad=found[1], name=text)
    return f


def _positions(text: str | None, call: syntax.Call) -> tuple[int | str, ...] | None:
    """What --wrt says, as positions of arguments or names of keywords."""
    if text is None:
        if call.kwargs and not call.args:
            known = ", ".join(call.kwargs)
            raise Misuse(f"say with --wrt which of the keywords to check: {known}.")
        return None
    found: list[int | str] = []
    for word in (w.strip() for w in text.split(",")):
        if word.isdigit() and int(word) < len(call.args):
            found.append(int(word))
        elif word in call.names:
            found.append(call.names.index(word))
        elif word in call.kwargs or word in parameter_names(call.function):
            found.append(word)
        else:
            known = ", ".join([*call.names, *call.kwargs])
            raise Misuse(f"--wrt: {word!r} is no argument of {call.written}; they are {known}.")
    return tuple(found)


def _differentiable(
    call: syntax.Call, grad: str | None, names: Names
) -> tuple[Any, Any, str | None, str]:
    """The function to check, its gradient (None: it carries it), the kind, and a note."""
    f = call.function
    if grad is not None:
        return f, syntax.evaluate(grad, names), None, ""
    owner = getattr(f, "__self__", None)
    if isinstance(owner, fg.Loss) and getattr(f, "__name__", "") in ("grad", "value_and_grad"):
        f = owner  # %gradcheck fg.cross_entropy.value_and_grad(X, y)
    if isinstance(f, (fg.Loss, fg.Map)):
        return f, None, None, ""
    if callable(g := getattr(f, "grad", None)):
        return f, g, None, ""
    if callable(both := getattr(f, "value_and_grad", None)):
        return fg.Loss(f, value_and_grad=both), None, None, ""
    if callable(g := getattr(f, "vjp", None)):
        return f, g, "vjp", ""
    if found := syntax.find_gradient(call.written, call.owner, names):
        name, g = found
        return f, g, "vjp" if name.endswith("_vjp") else None, f"gradient: {name}"
    value = f(*call.args, **call.kwargs)
    if isinstance(value, tuple) and len(value) == 2 and np.ndim(value[0]) == 0:
        return fg.Loss(value_and_grad=f, name=call.name), None, None, ""
    tried = ", ".join(syntax.gradient_names(call.written))
    raise Misuse(
        f"no gradient of {call.written} found: it has no .grad, .value_and_grad or .vjp, and "
        f"returns no pair (value, gradient){f'; none of {tried} is defined' if tried else ''}. "
        "Name one with --grad."
    )
