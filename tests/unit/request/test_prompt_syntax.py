"""The weighted syntax of prompts: what A1111 reads in a text, and that every text can be read."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.request.prompt_syntax import Fragment, check_weights, parse_weighted

MARKS = st.lists(st.sampled_from([*list("()[]\\:. ,"), "cat", "1.3", ":0.5)", "BREAK", " BREAK "]), max_size=40)
TEXTS = st.text(max_size=60) | MARKS.map("".join)


def parsed(text: str) -> list[list[tuple[str, float]]]:
    return [[(each.text, pytest.approx(each.weight)) for each in section] for section in parse_weighted(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("a [faint] word", [("a ", 1), ("faint", 1 / 1.1), (" word", 1)]),
        ("(red:1.3)(blue:-.5)[(green:2)]", [("red", 1.3), ("blue", -0.5), ("green", 2 / 1.1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("un) [balanced", [("un) ", 1), ("balanced", 1 / 1.1)]),
        (r"\(literal\] \\ \x", [("(literal] \\ x", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("(crossed [brackets) close] alone", [("crossed ", 1.1), ("brackets", 1), (" close", 1 / 1.1), (" alone", 1)]),
        ("a: b :1.3) (1:2:3) (x:1.2.3)", [("a: b :1.3) ", 1), ("1:2", 3), (" ", 1), ("x:1.2.3", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
        ("", []),
    ],
)
def test_texts_are_read_as_a1111_reads_them(text: str, expected: list[tuple[str, float]]) -> None:
    assert parsed(text) == [expected]


def test_break_ends_a_section_also_in_brackets() -> None:
    assert parsed("a BREAK b\nBREAK  c BREAKS break") == [[("a", 1)], [("b", 1)], [("c BREAKS break", 1)]]
    assert parsed("(a BREAK b:2)") == [[("a", 2)], [("b", 2)]]
    assert parsed("BREAK a BREAK") == [[], [("a", 1)], []]


@given(TEXTS)
def test_any_text_is_read_and_nothing_but_marks_is_lost(text: str) -> None:
    sections = parse_weighted(text)
    read = "".join(fragment.text for section in sections for fragment in section)
    letters = re.compile(r"[\s()\[\]\\:.\d+-]|BREAK")
    assert letters.sub("", read) == letters.sub("", text)
    for section in sections:
        assert all(each.text for each in section)
        assert all(first.weight != second.weight for first, second in itertools.pairwise(section))


@given(st.text(max_size=60).filter(lambda text: "BREAK" not in text))
def test_escaped_texts_come_back(text: str) -> None:
    escaped = re.sub(r"([\\()\[\]])", r"\\\1", text)
    assert parse_weighted(escaped) == [[Fragment(text)] if text else []]


@given(st.lists(st.sampled_from([("(", ")", 1.1), ("[", "]", 1 / 1.1), ("(", ":1.5)", 1.5), ("(", ":-2)", -2.0)])))
def test_weights_of_nested_brackets_multiply(brackets: list[tuple[str, str, float]]) -> None:
    text, weight = "cat", 1.0
    for opened, closed, factor in brackets:
        text, weight = f"{opened}{text}{closed}", weight * factor
    assert parsed(text) == [[("cat", weight)]]


@pytest.mark.parametrize(
    ("text", "weight"),
    [("a (cat:5.5)", "5.5"), ("(cat:-6)", "-6"), (f"(cat:{'9' * 400})", "inf"), ("(" * 20 + "cat", "6.7")],
)
def test_weights_beyond_the_limits_are_named(text: str, weight: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf'^PROMPT gives "cat" the weight {weight}\d*; allowed: -5 to 5$'):
        check_weights("PROMPT", text)
    check_weights("PROMPT", "(cat:5) (dog:-5) [(cat:5.5)]")
