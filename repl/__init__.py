"""Interactive front ends of fastgrad: IPython magics, a terminal, a Jupyter kernel.

`syntax.py` reads what was typed, `magics.py` runs it, `views.py` shows the result, `completion.py`
helps typing; `console.py` is the terminal, `kernel.py` the kernel, `kernelspec.py` installs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

# From the root of the repository this folder is also found as `repl`: a second copy of every
# module, whose classes are not those of the first.
if __name__ != "fastgrad.repl":
    raise ImportError(
        f"this package must be imported as 'fastgrad.repl'; it was imported as {__name__!r} from "
        "the repository's folder. Write 'import fastgrad.repl'."
    )

__all__ = ["load_ipython_extension", "unload_ipython_extension"]


def load_ipython_extension(ipython: InteractiveShell) -> None:
    """Register `%gradcheck` and `%profile_loss`, their completion, and how results are shown."""
    import fastgrad as fg
    from fastgrad.repl import views
    from fastgrad.repl.completion import Matcher
    from fastgrad.repl.magics import FastgradMagics

    unload_ipython_extension(ipython)  # %load_ext fastgrad.repl after %load_ext fastgrad
    magics = FastgradMagics(ipython)
    ipython.register_magics(magics)
    parsers = {name: getattr(magics, name).parser for name in ("gradcheck", "profile_loss")}
    ipython.Completer.custom_matchers.append(Matcher(ipython, parsers).registered)

    def words(result: Any, printer: Any, cycle: bool) -> None:
        shown = magics.was_shown(result)
        printer.text(repr(result) if shown else views.text(result, ipython))

    def page(result: Any) -> str | None:
        return None if magics.was_shown(result) else views.html(result)

    formatters = _formatters(ipython)
    for shown in (fg.GradcheckResult, fg.LossProfile):
        formatters["text/plain"].for_type(shown, words)
        formatters["text/html"].for_type(shown, page)


def unload_ipython_extension(ipython: InteractiveShell) -> None:
    """Take everything out again: IPython has no call for it."""
    import fastgrad as fg

    manager = ipython.magics_manager
    if (magics := manager.registry.pop("FastgradMagics", None)) is None:
        return
    for table in manager.magics.values():
        for name in ("gradcheck", "profile_loss"):
            table.pop(name, None)
    ipython.configurables.remove(magics)
    matchers = ipython.Completer.custom_matchers
    matchers[:] = [m for m in matchers if getattr(m, "matcher_identifier", "") != "fastgrad"]
    for shown in (fg.GradcheckResult, fg.LossProfile):
        for mime in ("text/plain", "text/html"):
            _formatters(ipython)[mime].pop(shown, None)


def _formatters(ipython: InteractiveShell) -> dict[str, Any]:
    formatter: Any = ipython.display_formatter
    return dict(formatter.formatters)
