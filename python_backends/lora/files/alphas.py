"""The alpha of every module, from the first place that says one."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ...common.errors import InvalidRequestError
from ...common.sentences import shown
from .modules import COMPONENTS
from .outside_settings import ADAPTER_CONFIG
from .settings import CATALOGUE, settings_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .keys import Target
    from .outside_settings import OutsideSettings
    from .patterns import PatternMatcher
    from .settings import Settings


class Alphas:
    """Asks the places that say alphas, and remembers what has to be told about them.

    A module's own tensor goes before all settings; these come in the order of `settings`.
    """

    def __init__(self, metadata: Mapping[str, str], outside: OutsideSettings, matcher: PatternMatcher) -> None:
        """Reads all settings of a file.

        Raises:
            InvalidRequestError: If one cannot be read, names no module, or says what is not served.
        """
        self._settings = settings_of(metadata, outside)
        self._of_module = {
            (settings.place, name): _by_module(settings, name, matcher)
            for settings in self._settings
            for name in ("alpha_pattern", "rank_pattern")
        }
        self._assumed = 0
        self._contradicted: Counter[tuple[str, str]] = Counter()

    def alpha(
        self, target: Target, own: float | None, rank: int | None, is_peft: bool, is_convolution: bool
    ) -> float | None:
        """The module's alpha, with rsLoRA's root of the rank accounted for; None where nothing is said.

        Args:
            target: The module.
            own: What its own tensor says.
            rank: Of its factors, where they have one.
            is_peft: Whether the file names it as PEFT does.
            is_convolution: Whether its kernel is larger than 1 × 1: kohya gives those an alpha of their own.

        Raises:
            InvalidRequestError: If a setting is of the wrong type, or of another rank.
        """
        settings = [each for each in self._settings if is_peft or not each.only_peft]
        for each in settings:
            self._check_rank(each, target, rank)
        said = [(each, self._said(each, target, is_convolution)) for each in settings]
        values = [(each, value) for each, value in said if value is not None]
        first = "its tensor" if own is not None else values[0][0].place if values else ""
        alpha = own if own is not None else values[0][1] if values else None
        for each, value in values:
            if value != alpha and (own is None or each.is_contradicted):
                self._contradicted[first, each.place] += 1
        if alpha is None and is_peft:
            self._assumed += 1
        if alpha is None or own is not None or rank is None:
            return alpha
        roots = (each.get(target.component, "use_rslora") for each in settings)
        return alpha * rank**0.5 if next((root for root in roots if root is not None), False) else alpha

    def declared_rank(self, target: Target) -> int | None:
        """What PEFT's settings say of the module's rank: of factors that are not factorised, nothing else does."""
        ranks = (self._rank(each, target) for each in self._settings)
        return next((rank for rank in ranks if rank is not None), None)

    def uses_dora(self, target: Target, is_peft: bool) -> str | None:
        """The place that says that the module has DoRA's magnitude; None if none does."""
        for each in self._settings:
            if (is_peft or not each.only_peft) and each.get(target.component, "use_dora"):
                return each.place
        return None

    def notes(self) -> list[str]:
        """Sentences about what was assumed, and what was said twice."""
        notes = []
        if self._assumed:
            notes.append(
                f"alpha = rank was assumed for {_modules(self._assumed)}: "
                f"neither the file, nor {ADAPTER_CONFIG} beside it, nor {CATALOGUE} says another"
            )
        for (first, other), count in self._contradicted.items():
            notes.append(f"{other} says another alpha than {first}, which counts, for {_modules(count)}")
        return notes

    def _said(self, settings: Settings, target: Target, is_convolution: bool) -> float | None:
        """What a place says of a module's alpha."""
        value = self._of_module[settings.place, "alpha_pattern"].get(target)
        names = ("conv_alpha", "lora_alpha", "alpha") if is_convolution else ("lora_alpha", "alpha")
        for name in names:
            value = settings.get(target.component, name) if value is None else value
        return None if value is None else settings.number(value)

    def _rank(self, settings: Settings, target: Target) -> int | None:
        rank = self._of_module[settings.place, "rank_pattern"].get(target)
        rank = settings.get(target.component, "r") if rank is None else rank
        return rank if isinstance(rank, int) and not isinstance(rank, bool) else None

    def _check_rank(self, settings: Settings, target: Target, rank: int | None) -> None:
        said = self._rank(settings, target)
        if None not in (said, rank) and said != rank:
            raise InvalidRequestError(f"its rank is {rank}; {settings.place} says {shown(said)}")


def _by_module(settings: Settings, name: str, matcher: PatternMatcher) -> dict[Target, Any]:
    """Module → value of a place's patterns, of every component and of all."""
    found: dict[Target, Any] = {}
    place = f"{name} in {settings.place}"
    for component in COMPONENTS:
        if f"{component}.{name}" in settings.values:
            found |= matcher.values(settings.get(component, name) or {}, component, place)
    if settings.values.get(name) is not None:
        found = matcher.values(settings.get("", name), None, place) | found
    return found


def _modules(count: int) -> str:
    return f"{count} module{'' if count == 1 else 's'}"
