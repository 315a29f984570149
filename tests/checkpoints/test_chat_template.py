"""Templates of strangers: rendered as `transformers` renders them, and no bomb goes off."""

from __future__ import annotations

import importlib.util
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support import tools as talk
from transformers.utils.chat_template_utils import render_jinja_template

from guerdon.data import TemplateInputs, read_template_kwargs
from guerdon.models.chat_template import left_out, render_chat
from guerdon.models.template_costs import TemplateLimit

TRL = importlib.util.find_spec("trl")
assert TRL is not None
assert TRL.submodule_search_locations
PUBLISHED = sorted((Path(TRL.submodule_search_locations[0]) / "chat_templates").glob("*.jinja"))
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

USER = {"role": "user", "content": "What is 3 × 4 <b>& more</b>?\n\n  "}
ANSWER = {"role": "assistant", "content": "<think>\n3+3+3+3\n</think>\n\n12, of course."}
CONVERSATIONS = [
    [USER],
    [USER, ANSWER],
    [{"role": "system", "content": "Be brief."}, USER, ANSWER, USER],
    [USER, ANSWER, USER, {"role": "assistant", "content": ""}],
    [USER, USER],
    [{"role": "human", "content": "Hello"}],
    [{"role": "user", "content": "word " * 1_000}, {"role": "assistant", "content": "ok " * 1_000}],
    [USER, ANSWER] * 20,
]


def tokenizer(template: str) -> Any:
    return SimpleNamespace(
        special_tokens_map=SPECIAL, get_chat_template=lambda tools=None: template
    )


def rendered(render: Any) -> str:
    """The text, or the error that the template raises."""
    try:
        return str(render())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_templates_are_rendered_as_transformers_renders_them(path: Path) -> None:
    template = path.read_text(encoding="utf-8")
    texts = 0
    for turns in CONVERSATIONS:
        for begun in (False, True):

            def theirs(turns: Any = turns, begun: bool = begun) -> str:
                (text,), _ = render_jinja_template(
                    [turns], chat_template=template, add_generation_prompt=begun, **SPECIAL
                )
                return str(text)

            def ours(turns: Any = turns, begun: bool = begun) -> str:
                return render_chat(tokenizer(template), turns, add_generation_prompt=begun)

            expected = rendered(theirs)
            assert rendered(ours) == expected
            texts += "Error" not in expected[:40]
    assert texts >= 4  # most templates render most of them


GROW = (
    "{%% set n = namespace(s=%s) %%}{%% for i in range(60) %%}%s{%% set n.s = %s %%}{%% endfor %%}"
    "{{ n.s }}"
)
LONG = "{%% set b = 'a' * 9000000 %%}{%% for i in range(99999) %%}%s{%% endfor %%}"

BOMBS = {
    "repeated text": "{{ 'a' * 2000000000 }}",
    "repeated list": "{{ [1] * 2000000000 }}",
    "power": "{{ 9 ** 999999999 }}",
    "products": GROW % ("9", "", "n.s * n.s"),
    "nested loops": "{% for a in range(9999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for a in range(99999) %}{% for b in range(99999) if 0 %}{% endfor %}"
    "{% endfor %}",
    "doubled by ~": GROW % ("'abcdefgh'", "", "n.s ~ n.s"),
    "doubled by +": GROW % ("'abcdefgh'", "", "n.s + n.s"),
    "doubled by a block": GROW % ("'abcd'", "{% set x %}{{ n.s }}{{ n.s }}{% endset %}", "x"),
    "doubled lists": GROW % ("'abcdefgh'", "", "[n.s, n.s]"),
    "one text often in a list": "{{ ['a' * 100000] * 100000 }}",
    "% width": "{{ '%2000000000d' % 1 }}",
    "% width by argument": "{{ '%*d'|format(2000000000, 1) }}",
    "format width": "{{ '{:2000000000}'.format(1) }}",
    "format width by argument": "{{ '{:{}}'.format(1, 2000000000) }}",
    "format width by name": "{{ '{a:2000000000}'.format_map({'a': 1}) }}",
    "many fields": "{{ ('%s' * 100000) % (('a' * 100000),) }}",
    "center": "{{ 'a'|center(2000000000) }}",
    "center by name": "{{ 'a'|center(width=2000000000) }}",
    "ljust": "{{ 'a'.ljust(2000000000) }}",
    "zfill by attr": "{{ ('a'|attr('zfill'))(2000000000) }}",
    "zfill by item": "{{ 'a'['zfill'](2000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(2000000000) }}",
    "indent": "{{ ('\n' * 10000)|indent(width=2000000) }}",
    "tojson": "{{ [1, [2, [3]]]|tojson(indent=1000000000) }}",
    "replace": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "replace method": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "join": "{{ range(99999)|join('b' * 100000) }}",
    "join method": "{{ ('b' * 100000).join(['a'] * 100000) }}",
    "split": "{% for i in range(99) %}{{ ('a ' * 100000).split()|length }}{% endfor %}",
    "to_bytes": "{{ (5).to_bytes(2000000000) }}",
    "lipsum": "{{ lipsum(1000000) }}",
    "strftime": "{{ strftime_now('%2000000000d') }}",
    "macros": "{% macro f(n) %}{{ f(n-1) if n }}{{ f(n-1) if n }}{% endmacro %}{{ f(60) }}",
    "comparisons": LONG % "{% if 'x' in b %}{% endif %}",
    "searches": LONG % "{{ b.find('x') }}",
    "slices": LONG % "{% set x = b[::2] %}",
    "dicts": "{% for i in range(99999) %}{% set x = {}.fromkeys(range(9999)) %}{% endfor %}",
}


@pytest.mark.parametrize("template", BOMBS.values(), ids=BOMBS.keys())
def test_a_template_that_takes_too_much_is_refused(template: str) -> None:
    with pytest.raises(Exception, match=r"chat template|unsafe|undefined"):
        render_chat(tokenizer(template), [USER])


def test_bombs_take_little_memory() -> None:
    """All of them in one process that may hold 400 MiB."""
    program = f"""
import resource
from types import SimpleNamespace
from guerdon.models.chat_template import render_chat
resource.setrlimit(resource.RLIMIT_AS, ({400 * 2**20},) * 2)
for template in {list(BOMBS.values())!r}:
    stranger = SimpleNamespace(special_tokens_map={{}}, get_chat_template=lambda: template)
    try:
        render_chat(stranger, [{{"role": "user", "content": "a"}}])
    except MemoryError:
        raise
    except Exception:
        continue
    raise SystemExit("rendered: " + template)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0


def test_a_bomb_behind_a_condition_waits_for_it() -> None:
    template = "{{ 'a' * 2000000000 if messages[0].content == 'now' else messages[0].content }}"
    assert render_chat(tokenizer(template), [{"role": "user", "content": "later"}]) == "later"
    with pytest.raises(TemplateLimit, match="too much memory or time"):
        render_chat(tokenizer(template), [{"role": "user", "content": "now"}])


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "llama3_1", "nemotron_3_nano", "gptoss"])
def test_tools_and_variables_are_rendered_as_transformers_renders_them(name: str) -> None:
    template = talk.published(name)
    turns = [dict(turn) for turn in talk.TALK]
    if name == "gptoss":  # which can't take null
        turns[2]["content"] = ""
    for kwargs in ({}, {"enable_thinking": False}):
        for tools in (None, [talk.WEATHER]):
            (wanted,), _ = render_jinja_template(
                [turns], tools=tools, chat_template=template, **SPECIAL, **kwargs
            )
            inputs = TemplateInputs(tuple(tools or ()), kwargs)
            assert render_chat(tokenizer(template), turns, inputs) == wanted


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ m.content }}{{ m.tool_calls[0].function.arguments | tojson }}", '{"at": "sky"}'),
        ("{{ m.content is none }}", "True"),
        ("{{ 'a' + m.content }}", "a"),
        ("{{ 'a' + m.content + m.tool_calls[0].function.arguments }}", 'a{"at": "sky"}'),
        (
            "{{ m.content is none }}{{ m.tool_calls[0].function.arguments + '' }}",
            'True{"at": "sky"}',
        ),
        ("{{ '' if m.content is none else 'None' }}", ""),
    ],
)
def test_null_content_and_arguments_are_given_as_a_template_takes_them(
    template: str, expected: str
) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert render_chat(tokenizer("{% set m = messages[0] %}" + template), [turn]) == expected


def test_a_variable_that_no_template_reads_is_found() -> None:
    made = tokenizer(talk.published("qwen3"))
    for names in ((), ("thinking",), ("ns", "thinking")):  # the template sets `ns` itself
        inputs = TemplateInputs((), dict.fromkeys(("enable_thinking", *names), True))
        text = render_chat(made, [USER], inputs)
        assert [one.path for one in left_out(made, [USER], inputs, text)] == [
            f"chat_template_kwargs.{name}" for name in names
        ]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_templates_show_calls_whatever_they_hold(path: Path) -> None:
    """A template that shows a plain call shows any other one."""
    made = tokenizer(path.read_text(encoding="utf-8"))
    values = ["it's", '{"a": "b\\n"}', True, None, 1.5, [], {}, ["x", {"y": [0]}], "", "ü\u2028"]
    inputs = TemplateInputs((talk.WEATHER,))
    for call in ({"city": "Rome"}, dict(zip("abcdefghij", values, strict=True))):
        turns = [*talk.ASKED, {**talk.CALL, "tool_calls": [talk.call(call)]}, talk.RESULT]
        try:
            text = render_chat(made, turns, inputs)
        except Exception:
            pytest.skip("has no turns of tools")
        missing = left_out(made, turns, inputs, text)
        if any(one.part is None for one in missing):
            assert call == {"city": "Rome"}
            return


def test_variables_take_the_place_of_nothing_that_rendering_sets() -> None:
    template = "{{ messages | length }}{{ tools }}{{ add_generation_prompt }}{{ bos_token }}"
    made = tokenizer(template)
    for name in ("messages", "tools", "add_generation_prompt", "bos_token"):
        with pytest.raises(ValueError, match=name):
            read_template_kwargs({name: "x"}, "kwargs", lambda path, why: ValueError(path + why))
        assert render_chat(made, [USER], TemplateInputs((), {name: "x"})) == render_chat(
            made, [USER]
        )
