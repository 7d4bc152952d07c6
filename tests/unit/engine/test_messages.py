"""Messages between denoisers and shards: what was said is what is heard; what is none is refused with its place."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.engine.messages import (
    MAX_PID,
    Borrow,
    Cancel,
    Claim,
    Claimed,
    Evaluate,
    Evaluation,
    Lent,
    Message,
    Poll,
    Polled,
    Quote,
    Quoted,
    RunState,
    Submit,
    Submitted,
    answer_from_json,
    message_from_json,
    to_json,
)
from swiftdiffusion.python_backends.engine.work import Work
from swiftdiffusion.python_backends.request.completed import (
    PRIORITIES,
    CompletedRequest,
    ControlNetUse,
    LoraUse,
    PlaceClaim,
    StepHistory,
)
from swiftdiffusion.python_backends.request.encoding import Encoding

TEXTS, COUNTS, NUMBERS = st.text(max_size=20), st.integers(0, 2**40), st.floats(allow_nan=False, allow_infinity=False)
KEYS, PIXELS = st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(1, 16384)


def few(each: st.SearchStrategy[Any], least: int = 0) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(each, min_size=least, max_size=3).map(tuple)


SETS = few(st.tuples(KEYS, NUMBERS))
REPORTS = st.fixed_dictionaries({"type": TEXTS, "message": TEXTS})
CONTROLNETS = st.builds(
    ControlNetUse,
    name=TEXTS,
    images=few(KEYS, least=1),
    scale=NUMBERS,
    start=NUMBERS,
    end=NUMBERS,
    guess_mode=st.booleans(),
    control_modes=few(COUNTS),
    sole=st.booleans(),
    stale=st.booleans(),
    history=st.none() | st.builds(StepHistory, TEXTS, COUNTS, COUNTS, COUNTS, st.booleans()),
)
REQUESTS = st.builds(
    CompletedRequest,
    run_id=KEYS,
    prompt=TEXTS,
    negative_prompt=st.none() | TEXTS,
    seed=st.integers(0, 2**63 - 1),
    steps=st.integers(1, 10_000),
    guidance_scale=NUMBERS,
    height=PIXELS,
    width=PIXELS,
    scheduler=st.none() | TEXTS,
    request_id=st.none() | TEXTS,
    deadline=st.none() | NUMBERS,
    loras=few(st.builds(LoraUse, TEXTS, NUMBERS, COUNTS, st.none() | COUNTS)),
    controlnets=few(CONTROLNETS),
    lora_defaults=st.dictionaries(TEXTS, TEXTS, max_size=2),
    clip_skip=st.none() | COUNTS,
    guidance_rescale=st.floats(0, 1),
    max_chunks=st.none() | st.integers(1, 64),
    priority=st.sampled_from(PRIORITIES),
    claim=st.none() | st.builds(PlaceClaim, TEXTS, TEXTS, NUMBERS, NUMBERS),
)
ENCODINGS = st.builds(Encoding, st.none() | KEYS, KEYS, NUMBERS, st.booleans())
WORKS = st.builds(Work, COUNTS, COUNTS, COUNTS, st.sampled_from(PRIORITIES), few(COUNTS))
MESSAGES: dict[type, st.SearchStrategy[Message]] = {
    Submit: st.builds(Submit, REQUESTS, ENCODINGS, TEXTS, st.integers(1, MAX_PID), st.booleans()),
    Poll: st.builds(Poll, few(TEXTS)),
    Cancel: st.builds(Cancel, few(TEXTS)),
    Quote: st.builds(Quote, WORKS),
    Claim: st.builds(Claim, WORKS, st.none() | NUMBERS, st.none() | NUMBERS, NUMBERS, COUNTS, NUMBERS),
    Borrow: st.builds(Borrow, TEXTS),
    Evaluate: st.builds(Evaluate, TEXTS, few(SETS), SETS, few(few(CONTROLNETS))),
}
STATES = st.builds(
    RunState,
    step=COUNTS,
    of=COUNTS,
    shape=st.none() | few(COUNTS),
    info=st.none() | st.dictionaries(TEXTS, NUMBERS | TEXTS, max_size=2),
    error=st.none() | REPORTS,
)
ANSWERS = [
    st.builds(Submitted, st.none() | REPORTS, st.booleans()),
    st.builds(Polled, st.dictionaries(TEXTS, st.none() | STATES, max_size=3), NUMBERS, NUMBERS),
    st.builds(Quoted, NUMBERS, NUMBERS, COUNTS, NUMBERS),
    st.builds(Claimed, st.none() | TEXTS, NUMBERS, st.none() | NUMBERS),
    st.builds(Lent, st.booleans()),
    st.builds(
        Evaluation,
        few(NUMBERS),
        few(st.booleans()),
        st.dictionaries(COUNTS, REPORTS, max_size=2),
        few(few(COUNTS)),
        st.booleans(),
    ),
]
every_message = pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)


def test_none_is_left_out() -> None:
    assert set(MESSAGES) == set(Message.__args__)


@given(message=st.one_of(*MESSAGES.values()))
def test_a_message_arrives_as_it_was_sent(message: Message) -> None:
    assert message_from_json(to_json(message)) == message


@given(answer=st.one_of(*ANSWERS))
def test_an_answer_says_the_same_to_who_asked(answer: Any) -> None:
    heard = answer_from_json(type(answer), to_json(answer))
    assert to_json(heard) == to_json(answer)
    if isinstance(answer, Polled):
        assert heard == answer


@every_message
@given(data=st.data())
def test_a_field_that_is_wrong_missing_or_unknown_is_named(kind: type, data: st.DataObject) -> None:
    said = asdict(data.draw(MESSAGES[kind]))
    name = data.draw(st.sampled_from([each.name for each in fields(kind) if each.name != "op"]))
    required = {each.name for each in fields(kind) if each.default is MISSING}
    spoilt = [said | {name: {"no": []}}, said | {"strange": 1}]
    if name in required:
        spoilt.append({field: value for field, value in said.items() if field != name})
    for values, place in zip(spoilt, [name, "strange", name], strict=False):
        with pytest.raises(InvalidRequestError, match=rf"MESSAGE is not .*: {said['op']}\.{place}"):
            message_from_json(json.dumps(values))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", '"1"', "true"])
@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"op": "claim", "work": {"rows": 1, "pixels": 1, "steps": 1}, "limit_s": N}', "claim.limit_s"),
        (
            '{"op": "evaluate", "home": "", "ahead": [], "controls": [], "loras": [[["key", N]]]}',
            "evaluate.loras.0.0.1",
        ),
        ('{"op": "quote", "work": {"rows": N, "pixels": 1, "steps": 1}}', "quote.work.rows"),
    ],
)
def test_what_is_no_finite_number_is_refused(text: str, place: str, number: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"MESSAGE is not .*: {place}"):
        message_from_json(text.replace("N", number))


@given(message=MESSAGES[Submit], sender=st.integers(max_value=0) | st.integers(min_value=MAX_PID + 1))
def test_what_is_no_process_is_refused(message: Submit, sender: int) -> None:
    with pytest.raises(InvalidRequestError, match=r"MESSAGE is not .*: submit\.sender"):
        message_from_json(json.dumps(asdict(message) | {"sender": sender}))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"op": "format"}', '{"op": null}', "\ud800", "1e999"])
def test_what_is_no_message_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="MESSAGE is not what denoisers and shards write"):
        message_from_json(text)


@given(text=st.text() | st.recursive(st.none() | TEXTS | NUMBERS, lambda each: few(each)).map(json.dumps))
def test_garbage_is_refused_and_nothing_else(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="MESSAGE is not what denoisers and shards write"):
        message_from_json(text)
