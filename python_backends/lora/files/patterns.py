r"""Patterns of settings that name modules: PEFT's rule, over every name that a module has.

PEFT takes the first pattern for which `(.*\.)?(pattern)$` matches the module's name (`peft.utils.get_pattern_key`). A
module is called many names, though: the checkpoint's, the file's, with and without prefixes, with underscores for dots.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import regex

from ...common.errors import InvalidRequestError
from ...common.sentences import shown
from .keys import PREFIX_OF, Target, target_of
from .modules import alias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .modules import BaseModules

MOST_PATTERNS, LONGEST_PATTERN = 10_000, 500
MATCHING_S = 1.0
"""Time for all regular expressions of a place: they are a stranger's, and some take for ever."""
_HARMLESS = re.compile(r"(?:[\w.*+?^$|)\[\]-]|\((?!\?)|\(\?[:=!]|\\[.dwb])*")
"""Expressions without counts and references to themselves, which can ask for any amount of memory."""
_LITERAL = re.compile(r"\^?(\w+(?:\\?\.\w+)*)\$?")


class PatternMatcher:
    """Finds the modules that patterns name, of a checkpoint and of a file for it."""

    def __init__(self, base: BaseModules, file_names: Mapping[Target, str]) -> None:
        """Reads nothing yet.

        Args:
            base: The checkpoint's modules.
            file_names: The file's modules as it names them, prefix included.
        """
        self._base, self._file_names = base, file_names

    def values(self, patterns: Mapping[str, Any], component: str | None, place: str) -> dict[Target, Any]:
        """Module → value of the first pattern that matches it.

        Args:
            patterns: Pattern → value.
            component: Whose modules they name; None for all.
            place: Where they stand, for sentences.

        Raises:
            InvalidRequestError: If one names no module, or is no regular expression, or they take too long.
        """
        if len(patterns) > MOST_PATTERNS:
            raise InvalidRequestError(f"{place} has {len(patterns)} patterns; allowed: at most {MOST_PATTERNS}")
        values: dict[Target, Any] = {}
        deadline = time.monotonic() + MATCHING_S
        for pattern, value in patterns.items():
            if len(pattern) > LONGEST_PATTERN:
                raise InvalidRequestError(
                    f"{place} has {shown(pattern)}; allowed: at most {LONGEST_PATTERN} characters"
                )
            found = self._literal(pattern) or self._regular(pattern, place, deadline)
            found = {target for target in found if component in (None, target.component)}
            if not found:
                raise InvalidRequestError(f"{place} names {shown(pattern)}; allowed: modules of this checkpoint")
            values |= {target: value for target in found if target not in values}
        return values

    def _literal(self, pattern: str) -> set[Target]:
        """Modules of that name, or whose names end so after a dot."""
        match = _LITERAL.fullmatch(pattern)
        if match is None:
            return set()
        name = match[1].replace("\\", "")
        found = set() if pattern.startswith("^") else set(self._by_ending[alias(name)])
        whole = target_of(name, self._base)
        return found if whole is None else found | {whole}

    def _regular(self, pattern: str, place: str, deadline: float) -> set[Target]:
        if not _HARMLESS.fullmatch(pattern):
            raise InvalidRequestError(
                f"{place} has {shown(pattern)}; allowed: names, . * + ? | ^ $ ( ) [ ] and \\. \\d \\w"
            )
        try:
            expression = regex.compile(rf"(.*\.)?({pattern})$")
            return {
                target
                for target, names in self._names.items()
                if any(expression.match(name, timeout=_left(deadline)) for name in names)
            }
        except regex.error:
            raise InvalidRequestError(f"{place} has {shown(pattern)}, which is no regular expression") from None
        except (TimeoutError, MemoryError, OverflowError, RecursionError):
            raise InvalidRequestError(f"{place} has {shown(pattern)}, which takes too long to match") from None

    @cached_property
    def _by_ending(self) -> dict[str, list[Target]]:
        """The ends of all module names, from a dot on, with underscores → modules."""
        endings: dict[str, list[Target]] = defaultdict(list)
        for component, shapes in self._base.shapes.items():
            for module in shapes:
                parts = module.split(".")
                for start in range(len(parts)):
                    endings["_".join(parts[start:])].append(Target(component, module))
        return endings

    @cached_property
    def _names(self) -> dict[Target, set[str]]:
        """All names of each module."""
        names = {}
        for component, shapes in self._base.shapes.items():
            for module in shapes:
                target, kohya = Target(component, module), PREFIX_OF[component] + alias(module)
                own = {module, f"{component}.{module}", f"base_model.model.{module}", kohya}
                if target in self._file_names:
                    own.add(self._file_names[target])
                if component.startswith("text_encoder"):  # CLIP's modules moved in and out of `text_model`
                    inner = module.removeprefix("text_model.")
                    own |= {inner, f"text_model.{inner}", f"{component}.text_model.{inner}"}
                names[target] = own
        return names


def _left(deadline: float) -> float:
    """Seconds until then.

    Raises:
        TimeoutError: If there are none.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
