"""Which transformer stacks of a mask-aware UNet call load what unmasked tokens were, and which compute all of theirs.

Loads have a stream of their own beside computation. A stack that loads computes masked tokens alone, but not before its
load is there; one that computes all waits for nothing, and leaves the stream to the next. So computing the first stacks
often pays: loads get ahead meanwhile. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Cached = tuple[bool, ...]
    Streams = tuple[float, float, tuple[float, ...]]

SOONER_S = 1e-12
"""By which a plan has to be better to be another: sums of seconds are rounded."""


@dataclass(frozen=True)
class StackCost:
    """Seconds of one stack in a call.

    Attributes:
        load: Of what its blocks gave for the tokens outside the mask.
        masked: To compute masked tokens alone.
        all: To compute all tokens.
        before: Of what is computed before it in any case, since the previous stack: convolutions.
    """

    load: float
    masked: float
    all: float
    before: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What stacks do in a call.

    Attributes:
        cached: Whether each loads, and computes masked tokens alone.
        seconds: Of the call, until the last stack is done.
        stalled: Seconds of these in which nothing is computed.
    """

    cached: tuple[bool, ...]
    seconds: float
    stalled: float


def simulate(
    stacks: Sequence[StackCost], cached: Sequence[bool], lead: float = 0.0, room: int | None = None
) -> tuple[float, float]:
    """Seconds of a call whose stacks do as planned, and how many of these it waits for loads.

    Args:
        stacks: In the order of the call.
        cached: Whether each loads.
        lead: Seconds before the call in which its first load may begin.
        room: Loads that have a place; a place is taken from the begin of a load until its stack is computed. None:
            as many as are wanted.
    """
    done = _done(stacks, cached, lead, room)
    return done, max(0.0, done - _sums(stacks, cached)[1])


def plan(stacks: Sequence[StackCost], lead: float = 0.0, room: int | None = None) -> Plan:
    """The fastest call.

    Without a bound of room, and with room for one load, no other is faster: of what can be planned for the first stacks
    all is kept that has the next load begin earlier, or is computed earlier, than the rest. With room in between, it
    also matters when each place gets free: what is found may be slower than the fastest (of 300 random calls of nine
    stacks 2 were, by 6 % at most), but not than `greedy`, than all stacks loading, than none, than with less room, nor
    than what one stack changed or two exchanged give.

    Args:
        stacks: In the order of the call.
        lead: As `simulate` takes it.
        room: The same.

    Raises:
        ValueError: If there is room for nothing.
    """
    _check(room)
    best = _soonest(stacks, lead, None)
    if room is not None and room < len(stacks):
        best = _with_room(stacks, lead, room, _done(stacks, best, lead, None))
    return _planned(stacks, best, lead, room)


def greedy(stacks: Sequence[StackCost], lead: float = 0.0, room: int | None = None) -> Plan:
    """InstGenIE's algorithm 1, for comparison: a stack loads if it is done no later then.

    It does not ask what the load costs the stacks after it.
    """
    _check(room)
    free, done = -lead, 0.0
    ends: tuple[float, ...] = ()
    cached: list[bool] = []
    for stack in stacks:
        computed, loaded = done + stack.before + stack.all, _loaded(free, done, ends, stack, room)
        cached.append(loaded[1] <= computed)
        free, done, ends = loaded if cached[-1] else (free, computed, ends)
    return _planned(stacks, tuple(cached), lead, room)


def steady(stacks: Sequence[StackCost]) -> Plan:
    """For many calls of the same stacks, whose loads run ahead over the ends of calls: only sums count then.

    Stacks load by what each second of their loads saves, as long as that shortens the longer of both streams; then one
    is changed, or two exchanged, while that does. With stacks that can be divided this would be the shortest.
    """
    every = range(len(stacks))

    def seconds(cached: Cached) -> float:
        return max(_sums(stacks, cached))

    best: Cached = (False,) * len(stacks)
    for number in sorted(every, key=lambda number: _saved_per_second(stacks[number]), reverse=True):
        best = min(best, tuple(at == number or best[at] for at in every), key=seconds)
    best = _improved(best, seconds)
    loads, computed = _sums(stacks, best)
    return Plan(best, max(loads, computed), max(0.0, loads - computed))


def _check(room: int | None) -> None:
    if room is not None and room < 1:
        raise ValueError(f"room for {room} loads; at least 1 is needed")


def _planned(stacks: Sequence[StackCost], cached: Cached, lead: float, room: int | None) -> Plan:
    return Plan(cached, *simulate(stacks, cached, lead, room))


def _loaded(free: float, done: float, ends: tuple[float, ...], stack: StackCost, room: int | None) -> Streams:
    """Both streams after a stack that loads.

    Args:
        free: When the next load may begin.
        done: When what is planned so far is computed.
        ends: When the last stacks that loaded are done: as many as there is room for.
        stack: The next one.
        room: As `simulate` takes it.
    """
    free += stack.load
    done = max(free, done + stack.before) + stack.masked
    if room is not None:
        ends = (*ends, done)[-room:]
        if len(ends) == room:
            free = max(free, ends[0])
    return free, done, ends


def _done(stacks: Sequence[StackCost], cached: Sequence[bool], lead: float, room: int | None) -> float:
    """When the last stack is."""
    free, done = -lead, 0.0
    ends: tuple[float, ...] = ()
    for stack, is_cached in zip(stacks, cached, strict=True):
        if is_cached:
            free, done, ends = _loaded(free, done, ends, stack, room)
        else:
            done += stack.before + stack.all
    return done


def _soonest(stacks: Sequence[StackCost], lead: float, room: int | None) -> Cached:
    """The Pareto front of both streams, stack by stack; the plan at its end that is computed first."""
    front: list[tuple[float, float, tuple[float, ...], Cached]] = [(-lead, 0.0, (), ())]
    for stack in stacks:
        whole = stack.before + stack.all
        following = [(free, done + whole, ends, (*cached, False)) for free, done, ends, cached in front]
        following += [(*_loaded(free, done, ends, stack, room), (*cached, True)) for free, done, ends, cached in front]
        following.sort()
        front = following[:1]
        for each in following:
            if each[1] < front[-1][1]:
                front.append(each)
    return front[-1][3]


def _with_room(stacks: Sequence[StackCost], lead: float, room: int, bound: float) -> Cached:
    """The best that is found, with less room first; nothing is done sooner than without a bound of room."""
    best: Cached = (False,) * len(stacks)
    for places in range(1, room + 1):

        def seconds(cached: Cached, places: int = places) -> float:
            return _done(stacks, cached, lead, places)

        front, simple = _soonest(stacks, lead, places), greedy(stacks, lead, places).cached
        best = min(best, front, simple, (True,) * len(stacks), key=seconds)
        if seconds(best) <= bound + SOONER_S:
            break
        if places > 1:
            best = _improved(best, seconds)
    return best


def _improved(cached: Cached, seconds: Callable[[Cached], float]) -> Cached:
    """The best that changing one stack, or exchanging two, leads to, as long as that is faster."""
    fastest = seconds(cached)
    while True:
        changed = min(_neighbours(cached), key=seconds, default=cached)
        if seconds(changed) >= fastest - SOONER_S:
            return cached
        cached, fastest = changed, seconds(changed)


def _neighbours(cached: Cached) -> Iterator[Cached]:
    every = range(len(cached))
    exchanges = product((at for at in every if cached[at]), (at for at in every if not cached[at]))
    for change in (*((at,) for at in every), *exchanges):
        changed = list(cached)
        for at in change:
            changed[at] = not changed[at]
        yield tuple(changed)


def _sums(stacks: Sequence[StackCost], cached: Sequence[bool]) -> tuple[float, float]:
    """Seconds of loads, and of computation."""
    pairs = list(zip(stacks, cached, strict=True))
    loads = sum(stack.load for stack, is_cached in pairs if is_cached)
    return loads, sum(stack.before + (stack.masked if is_cached else stack.all) for stack, is_cached in pairs)


def _saved_per_second(stack: StackCost) -> float:
    saved = stack.all - stack.masked
    return saved / stack.load if stack.load else saved * float("inf") if saved else 0.0
