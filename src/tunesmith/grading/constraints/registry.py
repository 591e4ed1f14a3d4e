"""The table of verifiable constraints: the 25 kinds of IFEval (Zhou et al. 2023, arXiv 2311.07911).

A kind has a name as the public data has it, named parameters, and a check of a text. To add one: a
function in the file of its family, one row in ``KINDS``, one row in the tests' table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.grading.constraints import case, content, ends, keywords, language, layout, length
from tunesmith.grading.constraints.amounts import RELATIONS

Reader = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of constraint."""

    check: Callable[..., bool]
    """Takes the text, and the parameters by name."""
    parameters: Mapping[str, Reader] = field(default_factory=dict)
    """Name → what reads its value; ``ValueError`` says what was expected."""
    tells_language: bool = False
    """Whether the check needs a detector of languages."""


def _count(value: Any) -> int:
    """Read a count; 3.0 is one too, since tables with gaps turn counts into such numbers."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or value % 1 or value < 0:  # NaN and infinity leave a rest that is not 0
        raise ValueError("a whole number of at least 0")
    return int(value)


def _first(value: Any) -> int:
    if _count(value) < 1:
        raise ValueError("a whole number of at least 1")
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text that is not empty")
    return value


def _sign(value: Any) -> str:
    if len(_text(value)) != 1:
        raise ValueError("one letter or sign")
    return str(value)


def _texts(value: Any) -> list[str]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError("a list of texts")
    return [_text(one) for one in value]


def _relation(value: Any) -> str:
    if _text(value) not in RELATIONS:
        raise ValueError(" or ".join(map(repr, RELATIONS)))
    return str(value)


def _language(value: Any) -> str:
    if _text(value) != "zh" and value not in language.LANGUAGES:
        raise ValueError(f"one of {' '.join(sorted(language.LANGUAGES))}")
    return str(value)


KINDS: Mapping[str, Kind] = {
    "keywords:existence": Kind(keywords.existence, {"keywords": _texts}),
    "keywords:frequency": Kind(
        keywords.frequency, {"keyword": _text, "relation": _relation, "frequency": _count}
    ),
    "keywords:forbidden_words": Kind(keywords.forbidden, {"forbidden_words": _texts}),
    "keywords:letter_frequency": Kind(
        keywords.letter_frequency,
        {"letter": _sign, "let_relation": _relation, "let_frequency": _count},
    ),
    "language:response_language": Kind(
        language.response_language, {"language": _language}, tells_language=True
    ),
    "length_constraints:number_sentences": Kind(
        length.number_sentences, {"relation": _relation, "num_sentences": _count}
    ),
    "length_constraints:number_paragraphs": Kind(
        length.number_paragraphs, {"num_paragraphs": _first}
    ),
    "length_constraints:number_words": Kind(
        length.number_words, {"relation": _relation, "num_words": _count}
    ),
    "length_constraints:nth_paragraph_first_word": Kind(
        length.nth_paragraph_first_word,
        {"num_paragraphs": _first, "nth_paragraph": _first, "first_word": _text},
    ),
    "detectable_content:number_placeholders": Kind(
        content.number_placeholders, {"num_placeholders": _count}
    ),
    "detectable_content:postscript": Kind(content.postscript, {"postscript_marker": _text}),
    "detectable_format:number_bullet_lists": Kind(
        layout.number_bullet_lists, {"num_bullets": _count}
    ),
    "detectable_format:constrained_response": Kind(layout.constrained_response),
    "detectable_format:number_highlighted_sections": Kind(
        layout.number_highlighted_sections, {"num_highlights": _count}
    ),
    "detectable_format:multiple_sections": Kind(
        layout.multiple_sections, {"section_spliter": _text, "num_sections": _count}
    ),
    "detectable_format:json_format": Kind(layout.json_format),
    "detectable_format:title": Kind(layout.title),
    "combination:two_responses": Kind(ends.two_responses),
    "combination:repeat_prompt": Kind(ends.repeat_prompt, {"prompt_to_repeat": _text}),
    "startend:end_checker": Kind(ends.end_checker, {"end_phrase": _text}),
    "startend:quotation": Kind(ends.quotation),
    "change_case:capital_word_frequency": Kind(
        case.capital_word_frequency, {"capital_relation": _relation, "capital_frequency": _count}
    ),
    "change_case:english_capital": Kind(case.english_capital, tells_language=True),
    "change_case:english_lowercase": Kind(case.english_lowercase, tells_language=True),
    "punctuation:no_comma": Kind(ends.no_comma),
}
