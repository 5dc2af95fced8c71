"""TAB after `%gradcheck` and `%profile_loss`: options, their choices, variables."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from IPython.core.completer import (
    CompletionContext,
    SimpleCompletion,
    SimpleMatcherResult,
    context_matcher,
)

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_MAGIC = re.compile(r"\s*(?:[\w.,\s]+=\s*)?(%%?)(gradcheck|profile_loss)\s(.*)", re.DOTALL)
_WORD = re.compile(r"(?:--?[\w-]*|[\w.]*)$")
_VALUED = re.compile(r"(--?[\w-]+)[\s=]+([\w.,]*)$")


class Matcher:
    """What fits at the cursor; one is registered with a shell's completer."""

    def __init__(
        self, shell: InteractiveShell, parsers: dict[str, argparse.ArgumentParser]
    ) -> None:
        self.shell, self.parsers = shell, parsers

        @context_matcher(identifier="fastgrad")
        def matcher(context: CompletionContext) -> SimpleMatcherResult:
            return self.matches(context)

        self.registered = matcher

    def matches(self, context: CompletionContext) -> SimpleMatcherResult:
        """For a magic's line all completions, and nothing else; for other lines none."""
        # Only the first line of a cell is a magic's; the others are Python's.
        found = _MAGIC.fullmatch(context.line_with_cursor[: context.cursor_position])
        if found is None or (found[1] == "%%" and context.cursor_line > 0):
            return {"completions": [], "suppress": False}
        fragment, texts = self.texts(self.parsers[found[2]], found[3])
        return {
            "completions": [SimpleCompletion(text, type=kind) for text, kind in texts],
            "suppress": True,
            "matched_fragment": fragment,
            "ordered": True,
        }

    def texts(
        self, parser: argparse.ArgumentParser, typed: str
    ) -> tuple[str, list[tuple[str, str]]]:
        """What was begun, and the words that could stand for it, with their kinds."""
        known = parser._option_string_actions
        valued = _VALUED.search(typed)
        if valued and valued[1] in known and known[valued[1]].nargs != 0:
            action, value = known[valued[1]], valued[2]
            if action.choices:
                return value, [
                    (str(c), "value") for c in action.choices if str(c).startswith(value)
                ]
            if action.dest == "wrt":
                return self.variables(value.rpartition(",")[2], arrays_only=True)
            if action.dest not in ("grad", "ref", "compare"):
                return value, []
        word = _WORD.search(typed)
        fragment = word[0] if word else ""
        if fragment.startswith("-"):
            return fragment, [(o, "option") for o in known if o.startswith(fragment)]
        return self.variables(fragment)

    def variables(self, begun: str, arrays_only: bool = False) -> tuple[str, list[tuple[str, str]]]:
        """Variables, or attributes of one: functions and arrays first."""
        owner, dot, begun_name = begun.rpartition(".")
        names = dict(self.of(owner)) if dot else self.shell.user_ns
        hidden = set() if dot else set(self.shell.user_ns_hidden) - {"fg", "np"}
        fits = [
            (0 if isinstance(v, np.ndarray) or callable(v) else 1, n, v)
            for n, v in names.items()
            if n.startswith(begun_name)
            and n not in hidden
            and (begun_name.startswith("_") or not n.startswith("_"))
            and (not arrays_only or isinstance(v, np.ndarray))
        ]
        fits.sort(key=lambda fit: fit[:2])
        return begun, [
            (f"{owner}{dot}{n}", "function" if callable(v) else "instance") for _, n, v in fits
        ]

    def of(self, owner: str) -> Iterator[tuple[str, Any]]:
        """Attributes of the object of a dotted name; nothing is called on the way."""
        first, *rest = owner.split(".")
        if first not in self.shell.user_ns:
            return
        value = self.shell.user_ns[first]
        for name in rest:
            value = inspect.getattr_static(value, name, None)
            if inspect.isdatadescriptor(value):
                return  # what it would give is not known before it is called
        for name in dir(value):
            yield name, inspect.getattr_static(value, name, None)
