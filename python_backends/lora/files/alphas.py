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

    Of a module with an alpha of its own, none is asked, or even read: the others hold what people like to note there.
    """

    def __init__(self, metadata: Mapping[str, str], outside: OutsideSettings, matcher: PatternMatcher) -> None:
        """Reads nothing yet."""
        self._metadata, self._outside, self._matcher = metadata, outside, matcher
        self._read: dict[bool, list[Place]] = {}
        self._assumed = 0
        self._contradicted: Counter[tuple[str, str]] = Counter()

    def places(self, is_peft: bool) -> list[Place]:
        """Those that speak of modules which the file names so, read once.

        Raises:
            InvalidRequestError: If one cannot be read, or says what is not served.
        """
        if is_peft not in self._read:
            found = settings_of(self._metadata, self._outside, is_peft)
            self._read[is_peft] = [Place(settings, self._matcher) for settings in found]
        return self._read[is_peft]

    def alpha(self, target: Target, own: float | None, rank: int | None, is_peft: bool) -> float | None:
        """The module's alpha, with rsLoRA's root of the rank accounted for; None where nothing is said.

        Args:
            target: The module.
            own: What its own tensor says.
            rank: Of its factors, where they have one.
            is_peft: Whether the file names it as PEFT does.

        Raises:
            InvalidRequestError: If a setting cannot be read, is of the wrong type, or of another rank.
        """
        if own is not None:
            if self._outside.alpha not in (None, own):
                self._contradicted["its tensor", CATALOGUE] += 1
            return own
        places = self.places(is_peft)
        for place in places:
            place.check_rank(target, rank)
        said = [(place.name, value) for place in places if (value := place.alpha(target)) is not None]
        if not said:
            self._assumed += is_peft
            return None
        first, alpha = said[0]
        for other, value in said:
            if value != alpha:
                self._contradicted[first, other] += 1
        roots = (place.settings.get(target.component, "use_rslora") for place in places)
        is_rooted = next((root for root in roots if root is not None), False)
        return alpha * rank**0.5 if is_rooted and rank is not None else alpha

    def declared_rank(self, target: Target, is_peft: bool) -> int | None:
        """What PEFT's settings say of the module's rank: of factors that are not factorised, nothing else does."""
        ranks = (place.rank(target) for place in self.places(is_peft))
        return next((rank for rank in ranks if rank is not None), None)

    def uses_dora(self, target: Target, is_peft: bool) -> str | None:
        """The place that says that the module has DoRA's magnitude; None if none does."""
        places = self.places(is_peft)
        return next((each.name for each in places if each.settings.get(target.component, "use_dora")), None)

    def notes(self) -> list[str]:
        """Sentences about what was assumed, and what was said twice."""
        notes = []
        if self._assumed:
            lies_there = f"; beside it lies an {ADAPTER_CONFIG} that is not known to be its, as others lie there too"
            notes.append(
                f"alpha = rank was assumed for {_modules(self._assumed)}: "
                f"neither the file, nor an {ADAPTER_CONFIG} of its, nor {CATALOGUE} says another"
                f"{lies_there if self._outside.has_strange_config else ''}"
            )
        for (first, other), count in self._contradicted.items():
            notes.append(f"{other} says another alpha than {first}, which counts, for {_modules(count)}")
        return notes


class Place:
    """What one place says of each module."""

    def __init__(self, settings: Settings, matcher: PatternMatcher) -> None:
        """Finds the modules that its patterns name."""
        self.settings, self.name = settings, settings.place
        self._alphas = _by_module(settings, "alpha_pattern", matcher)
        self._ranks = _by_module(settings, "rank_pattern", matcher)

    def alpha(self, target: Target) -> float | None:
        """A module's alpha, checked; None where nothing is said."""
        value = self._alphas.get(target)
        for name in ("lora_alpha", "alpha"):
            value = self.settings.get(target.component, name) if value is None else value
        return None if value is None else self.settings.number(value)

    def rank(self, target: Target) -> int | None:
        """A module's rank; None where no whole number is said."""
        rank = self._ranks.get(target)
        rank = self.settings.get(target.component, "r") if rank is None else rank
        return rank if isinstance(rank, int) and not isinstance(rank, bool) else None

    def check_rank(self, target: Target, rank: int | None) -> None:
        """Refuses settings of another rank: they are of another file."""
        said = self.rank(target)
        if None not in (said, rank) and said != rank:
            raise InvalidRequestError(f"its rank is {rank}; {self.name} says {shown(said)}")


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
