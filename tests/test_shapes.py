"""Foreign chat templates: tried on conversations of many shapes, with all that they may call."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tiny_models import CHATML
from tunesmith.data.templates import INSTRUCTION, PLAIN
from tunesmith.models.shapes import RENDER, SHAPES

LONG = "{{ 'x' * 2000 }}"


@pytest.fixture(scope="module")
def ends() -> Callable[[str], tuple[bool, list[str]]]:
    """Return the function that a process of its own runs; its shapes come to it as JSON."""
    found: dict[str, Any] = {}
    exec(RENDER, found)
    shapes = json.loads(json.dumps(SHAPES))

    def tried(text: str) -> tuple[bool, list[str]]:
        refused: list[str] = []
        return found["ends"](text, shapes, 1000, refused.append), refused

    return tried


@pytest.mark.parametrize(
    "template",
    [
        LONG,
        "{% if add_generation_prompt %}" + LONG + "{% endif %}",
        "{% if not add_generation_prompt %}" + LONG + "{% endif %}",
        "{% if messages|length == 1 %}" + LONG + "{% endif %}",
        "{% if messages|length > 5 %}" + LONG + "{% endif %}",
        "{% if messages[0].role == 'system' %}" + LONG + "{% endif %}",
        "{% if tools %}" + LONG + "{% endif %}",
        "{% for m in messages if m.tool_calls %}" + LONG + "{% endfor %}",
        "{% for m in messages if m.role == 'tool' %}" + LONG + "{% endfor %}",
        "{% if messages[0].content|length > 9 %}" + LONG + "{% endif %}",
        "{% if pad_token is defined %}" + LONG + "{% endif %}",
        # What transformers gives a template is there, so nothing stops it earlier than there.
        "{{ strftime_now('%Y') }}" + LONG,
        "{{ messages[0]|tojson(indent=2, ensure_ascii=False) }}" + LONG,
        "{% generation %}{% endgeneration %}" + LONG,
        "{% if messages|length > 1 %}{{ raise_exception('no') }}{% endif %}" + LONG,
        "{% for n in range(9) %}{% if n %}{% break %}{% endif %}{% endfor %}" + LONG,
    ],
)
def test_what_grows_for_one_shape_alone_is_found(ends: Any, template: str) -> None:
    assert ends(template) == (False, [])


@pytest.mark.parametrize("template", [CHATML, PLAIN, INSTRUCTION, "{% if %}", "{{ nobody.has }}"])
def test_what_is_used_or_is_no_template_is_let_through(ends: Any, template: str) -> None:
    assert ends(template) == (True, [])


def test_a_way_out_of_the_sandbox_is_told(ends: Any) -> None:
    fine, refused = ends("{{ messages.append.__globals__ }}{{ ''.__class__.__mro__ }}")
    assert fine
    assert refused
