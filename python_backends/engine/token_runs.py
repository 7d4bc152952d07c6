"""Mask-aware runs: in most steps masked tokens alone are computed; what the others become, a line says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..request.mask_aware import LEAST_STEPS, MOST_AREA
from .template_lines import TemplateLine
from .token_lines import TokenLine
from .token_report import TokenReport
from .token_rows import TokenRow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..networks.token_masks import TokenMask
    from ..request.mask_aware import MaskAware
    from .run_template import RunTemplate
    from .template_store import Company
    from .token_lines import Line, Source
    from .token_memory import TokenMemory

HALVES = 2
NEAR = 0.5
"""Largest error of a template of another prompt in a run's first step: what is further serves worse than nothing."""


class TokenRun:
    """What one run keeps of its tokens, and when it computes all of them.

    Attributes:
        lines: Of each half; None for a half that leaves nothing out.
    """

    def __init__(
        self,
        mask: TokenMask,
        asked: MaskAware | None,
        steps: int,
        memory: TokenMemory,
        levels: Sequence[int] | None,
        template: RunTemplate | None = None,
    ) -> None:
        """Keeps nothing yet.

        Args:
            mask: Its tokens, where the UNet is.
            asked: In which steps all are computed; None for all steps, of a run that only leaves what it computes.
            steps: Of the run.
            memory: Of the shard.
            levels: `TokenStacks.levels`; None for a runtime that masks nothing.
            template: What is known of its picture, and what it leaves; None where nothing ever is.
        """
        self.lines: list[Line | None] = [None] * HALVES
        self._company: list[Company | None] = [None] * HALVES
        self._spans = [range(steps)] * HALVES
        self._taken = [0] * HALVES
        self._mask, self._asked, self._steps, self._memory = mask, asked, steps, memory
        self._levels, self._template = levels or (), template
        self._outside: list[torch.Tensor] = []
        self._report = TokenReport(mask, self._levels)
        self._tries: dict[int, list[TemplateLine]] = {}
        self._is_known = self._was_far = False
        self._chooses = asked is not None and asked.source == "auto"
        self._why_exact = self._reason(mask) if levels else "the runtime computes all"

    def _reason(self, mask: TokenMask) -> str | None:
        if mask.area > MOST_AREA or mask.is_full:
            return f"{mask.area:.2f} of the picture are masked; up to {MOST_AREA:g} something is saved"
        return self._too_few() if self._template is None else None

    def _too_few(self) -> str | None:
        """Why a line cannot go by the run's own steps."""
        if self._asked is None or self._asked.source == "own":
            return None
        if self._asked.source == "template":
            return None if self._is_known else "nothing is known of the picture"
        if self._steps >= LEAST_STEPS:
            return None
        nearer = " with a prompt nearer to this one" if self._was_far else ""
        return f"{self._steps} steps taken are too few; {LEAST_STEPS} are enough, or a template of the picture{nearer}"

    def rows(
        self, step: int, companies: Mapping[int, Company], until: Callable[[], int] | None = None
    ) -> dict[int, TokenRow | None]:
        """Those of a step's calls, by half; None where all is computed and nothing of it is wanted.

        Args:
            step: The run's.
            companies: Of each half that it evaluates.
            until: Gives the first later step that will be in another company, where it is known; None for none.
        """
        if self._why_exact is not None:
            return dict.fromkeys(companies)
        for half, company in companies.items():
            if company != self._company[half]:
                self._enter(half, company, range(step, self._steps if until is None else until()))
        if self._chooses and any(self.lines[half] is None for half in companies):
            for half in companies:  # one half alone saves little, and keeps the other from idle shards
                self._drop(half)
        return {half: self._row(step, half, company) for half, company in companies.items()}

    def _row(self, step: int, half: int, company: Company) -> TokenRow | None:
        line, goes_on = self.lines[half], False
        if self._asked is not None:
            exact = frozenset(range(self._steps)) if line is None else self._asked.exact(line.source, self._steps)
            if half in self._tries or (self._tries and self._too_few()):  # if that fails, all are to be exact
                exact |= {step}
            if line is not None and step not in exact and line.reaches(step):
                return TokenRow(self, half, step, line, self._mask)
            by_template = self._asked.source == "template" if line is None else line.source == "template"
            if by_template and (line is None or step not in exact):
                self._report.missed.add((step, half))
            self._report.note_exact(step)
            goes_on = any(later not in exact for later in range(step + 1, self._steps))
        name = None if self._template is None else self._template.missing(half, company, step)
        return TokenRow(self, half, step, line if goes_on else None, None, name) if goes_on or name else None

    def _enter(self, half: int, company: Company, steps: range) -> None:
        """Finds by which line a half goes in this company, in these steps: another one is another line."""
        self._drop(half)
        self._company[half], self._spans[half] = company, steps
        if self._asked is None:
            return
        lines: list[TemplateLine] = []
        if self._template is not None and self._asked.source != "own":
            lines = self._template.lines(half, company, steps, any_=self._asked.source == "template")
        self._is_known = self._is_known or bool(lines)
        if lines and self._chooses and not lines[0].same_prompt:
            self._tries[half] = lines
        self.lines[half] = lines[0] if lines else self._own_line()

    def _own_line(self) -> TokenLine | None:
        """None for a run that would not go by it."""
        assert self._asked is not None
        return None if self._asked.source == "template" or self._too_few() else TokenLine()

    def half_to_keep(self, step: int, companies: Mapping[int, Company]) -> int | None:
        """Of halves that lack an entry, the one to be evaluated here, if the other is elsewhere; None where none does.

        What nothing serves yet goes first; then they take turns where that is enough for both, or one after the other.

        Args:
            step: The run's.
            companies: Of each half whose entry is wanted.
        """
        template, halves = self._template, list(companies)
        if template is None or len(halves) < HALVES:
            return halves[0] if halves else None
        wanted = [
            half for half in halves if not template.serves(half, companies[half], step, self._spans[half])
        ] or halves
        return wanted[step % len(wanted) if template.takes_turns else 0]

    @property
    def computes_all(self) -> bool:
        """Whether no step will leave anything out, as things are."""
        undecided = all(company is None for company in self._company)
        return self._asked is None or self._why_exact is not None or not (undecided or any(self.lines))

    @property
    def mask(self) -> TokenMask:
        """Its tokens."""
        return self._mask

    def is_exact(self, step: int, source: Source) -> bool:
        """Whether a step was asked to compute all."""
        return self._asked is None or step in self._asked.exact(source, self._steps)

    def note_masked(self, row: TokenRow) -> None:
        """A half of a step computed masked tokens alone."""
        self._report.note_masked(row)

    def keep(self, row: TokenRow, values: Sequence[torch.Tensor]) -> None:
        """What a row's blocks gave."""
        if self._why_exact is not None:  # since a row of the same call
            return
        line = row.line
        if row.half in self._tries:
            line = self._tried(row.half, row.step, values)
        if line is not None and self._has_room(row.half, line, values):
            line.keep(row.step, values, self._unmasked(values))
            self._report.note_error(line.error)
        if row.name is not None and self._template is not None:
            self._template.leave(row.name, values)

    def _tried(self, half: int, step: int, values: Sequence[torch.Tensor]) -> TokenLine | None:
        """Chooses the nearest of what other prompts left; if that is too far off, the half's own steps, which it gives.

        Reads errors: on a GPU this waits for the step, once in a run.
        """
        for line in (tries := self._tries[half]):
            line.compare(step, values, self._unmasked(values))
        errors = [(float(line.error), number) for number, line in enumerate(tries) if line.error is not None]
        if not errors:
            return None
        (error, number), own = min(errors), None
        self._drop(half)
        if error <= NEAR:
            self.lines[half] = tries[number]  # not corrected by this step: so early it makes what follows no better
            self._report.note_error(tries[number].error)
        else:
            self._was_far = True
            own = self.lines[half] = self._own_line()
        return own

    def _has_room(self, half: int, line: Line, values: Sequence[torch.Tensor]) -> bool:
        if not self._taken[half]:
            nbytes = line.sets * sum(each.nbytes for each in values)
            if not self._memory.take(nbytes):
                self.close()
                self._why_exact = "the shard has no room for its tokens"
                return False
            self._taken[half] = nbytes
        return True

    def close(self) -> None:
        """It has ended."""
        for half in range(HALVES):
            self._drop(half)
        self._outside = []
        if self._template is not None:
            self._template.tell(self._report.hits, len(self._report.missed))

    def _drop(self, half: int) -> None:
        if (line := self.lines[half]) is not None:
            line.forget()
        self.lines[half] = None
        self._tries.pop(half, None)
        self._memory.give_back(self._taken[half])
        self._taken[half] = 0

    def report(self, steps: int) -> dict[str, Any] | None:
        """INFO's `editing`; None of a run that was not asked to leave anything out."""
        if self._asked is None:
            return None
        why = self._why_exact or self._too_few() or "no step was left for it"
        return self._report.to_json(steps, sum(company is not None for company in self._company), why)

    def _unmasked(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """By block, [tokens, 1]: 1 outside the mask, else 0."""
        if not self._outside:
            levels = []
            for height, width in self._mask.sides:
                outside = values[0].new_ones(height * width, 1)
                outside[self._mask.places[height, width]] = 0
                levels.append(outside)
            self._outside = levels
        return [self._outside[level] for level in self._levels]
