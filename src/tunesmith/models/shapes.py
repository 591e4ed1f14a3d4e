"""Conversations of many shapes, and how a foreign chat template is tried on all of them.

A template may do one thing for two turns and another for one, or for a prompt that is to be
answered. What waits for a text that is none of these is not found.
"""

from __future__ import annotations

from typing import Any

_SYSTEM = {"role": "system", "content": "c"}
_USER = {"role": "user", "content": "a"}
_ASSISTANT = {"role": "assistant", "content": "b"}
_LONGER = {"role": "user", "content": "The cat sat on 12 mats; isn't it 3.5 km?\n" * 4}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "id": "d", "function": {"name": "e", "arguments": {"f": 1}}}
    ],
}
_RESULT = {"role": "tool", "name": "e", "tool_call_id": "d", "content": "g"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "e",
        "description": "h",
        "parameters": {"type": "object", "properties": {"f": {"type": "integer"}}},
    },
}
_TURNS: tuple[tuple[list[dict[str, Any]], list[dict[str, Any]] | None], ...] = (
    ([_USER], None),
    ([_USER, _ASSISTANT], None),
    ([_SYSTEM, _USER], None),
    ([_SYSTEM, _USER, _ASSISTANT], None),
    ([_LONGER, _ASSISTANT] * 3 + [_LONGER], None),
    ([_USER], [_TOOL]),
    ([_SYSTEM, _USER, _CALL, _RESULT, _ASSISTANT], [_TOOL]),
)
"""Conversations with the tools that are offered in them."""
SHAPES: tuple[dict[str, Any], ...] = tuple(
    {
        "messages": turns,
        "tools": tools,
        "documents": None,
        "add_generation_prompt": asked,
        **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), ""),
    }
    for turns, tools in _TURNS
    for asked in (False, True)
)
"""What a template is given, as JSON knows it."""
RENDER = r'''
def ends(text, shapes, longest, refused):
    """Say whether a template makes no more than so many letters of each shape.

    ``refused`` is called where it tries to leave its sandbox. A shape that it does not take is
    passed over: that is said when it is used.
    """
    import datetime
    import json
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message):
        raise TemplateError(message)

    place = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    place.filters["tojson"] = lambda value, **how: json.dumps(value, **how)
    place.globals["raise_exception"] = raise_exception
    place.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        form = place.from_string(text)
    except MemoryError:
        return False
    except Exception:
        return True
    for shape in shapes:
        made = 0
        try:
            for part in form.generate(**shape):
                made += len(part)
                if made > longest:
                    return False
        except MemoryError:
            return False
        except SecurityError as failure:
            refused(str(failure))
        except Exception:
            pass
    return True
'''
"""Source of a function for a process of its own, which loads nothing but Jinja.

Tags, filters and functions are those that transformers gives a template: one that is stopped by a
missing one here would go on there.
"""
