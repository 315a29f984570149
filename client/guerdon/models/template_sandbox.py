"""The sandbox in which templates of strangers run: what each operation makes is paid for.

A template is a Jinja program. The sandbox of Jinja (which `transformers` uses) keeps it from the
interpreter, not from `{{ 'a' * 2000000000 }}`: one line can take all memory or never end. Here
every operation pays for the characters and elements that it is about to make, out of an allowance;
a template that runs out of it is refused before the memory is taken.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from guerdon.models.template_costs import (
    ALLOWANCE_PER_CHARACTER,
    BASE_ALLOWANCE,
    FILTERS,
    FREE_FILTERS,
    LINEAR_TESTS,
    METHODS,
    SIZED,
    STEP,
    STR_METHODS,
    TemplateLimit,
    allowed,
    check_bits,
    length,
    length_as_text,
    pay,
    pay_format,
    pay_product,
)

BROKEN = (TemplateLimit, jinja2.TemplateSyntaxError)
"""What says of a template that nothing can be rendered by it."""


def render_text(source: str, values: Mapping[str, str]) -> str:
    """A text by a Jinja template that is no tokenizer's, within the same limits.

    Raises:
        TemplateLimit: the template takes more memory or time than it can need.
        Exception: what Jinja or the template itself raises; a template is a program.
    """
    size = sum(map(len, values.values()))
    with allowed(BASE_ALLOWANCE + ALLOWANCE_PER_CHARACTER * size):
        return compiled(source).render(values)


@functools.lru_cache(maxsize=64)
def template_variables(source: str) -> frozenset[str]:
    """The variables that a template reads and does not set itself.

    Raises:
        jinja2.TemplateSyntaxError: it is no template.
    """
    return frozenset(meta.find_undeclared_variables(_BoundedSandbox().parse(source)))


@functools.lru_cache(maxsize=64)
def compiled(source: str) -> jinja2.Template:
    """A template, ready to be rendered within an allowance.

    Raises:
        jinja2.TemplateSyntaxError: it is no template.
    """
    return _BoundedSandbox().from_string(source)


class _GenerationTag(Extension):
    """`{% generation %}` marks what an assistant wrote; for rendering it is only its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own name and type

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _PayingTransformer(NodeTransformer):
    """Lets what the sandbox does not intercept pass through functions that pay."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self._through(_looped, node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._through(_concatenated, *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = self._through(_handed_on, node.node)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        equality = all(operand.op in ("eq", "ne") for operand in node.ops)
        if equality and any(isinstance(side, nodes.Const) for side in sides):
            return node  # reads no more than the constant's length
        node.expr = self._through(_handed_on, node.expr)
        for operand in node.ops:
            operand.expr = self._through(_handed_on, operand.expr)
        return node

    @staticmethod
    def _through(function: Callable[..., Any], value: Any, *more: nodes.Expr) -> nodes.Expr:
        if isinstance(value, nodes.Const) and not more:
            return value
        call = nodes.Filter(value, function.__name__, list(more), [], None, None)
        call.set_lineno(value.lineno)
        return call


class _BoundedSandbox(ImmutableSandboxedEnvironment):
    """The environment of `transformers`' chat templates, in which every operation pays."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, loopcontrols],
            finalize=_finalized,
            optimized=False,  # nothing of the template runs while it is compiled
        )
        self.filters["tojson"] = _to_json
        self.filters = {
            **{name: self.filters[name] for name in FREE_FILTERS},
            **{name: _paying(self.filters[name], due) for name, due in FILTERS.items()},
            **{function.__name__: function for function in (_looped, _concatenated, _handed_on)},
        }
        del self.tests["in"]  # it may go through a whole list; the operator `in` pays
        self.tests |= {name: _paying(self.tests[name], None) for name in LINEAR_TESTS}
        self.globals = {
            name: self.globals[name] for name in ("range", "dict", "cycler", "joiner", "namespace")
        }
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _PayingTransformer().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def concat(self, pieces: Iterable[str]) -> str:
        """What is rendered, of the whole template, a macro or a block."""
        kept = []
        for piece in pieces:
            pay(len(piece))
            kept.append(piece)
        return "".join(kept)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operation on two values."""
        if operator == "+":
            pay(STEP + length(left) + length(right))
        elif operator == "%" and isinstance(left, str):
            pay_format(left, right if isinstance(right, tuple) else (right,))
        elif operator == "*":
            pay_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            check_bits(left.bit_length() * abs(right))
        return self.binop_table[operator](left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read an attribute: of basic types, the known methods only."""
        for kind in type(obj).__mro__:
            if kind in METHODS:
                return attr in METHODS[kind]
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, which some callers take without the sandbox's `call`."""
        if not isinstance(value, BuiltinMethodType | MethodType):
            return None
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text = value.__self__

        def paying(*arguments: Any, **named: Any) -> str:
            pay_format(text, (*arguments, *named.values()))
            return wrapped(*arguments, **named)

        return paying

    def call(_self, _context: Context, _obj: Any, *arguments: Any, **named: Any) -> Any:
        """A call of a method, a macro, or a function."""
        pay(STEP + sum([8 + length(each) for each in arguments]))
        owner = getattr(_obj, "__self__", None)
        if isinstance(owner, SIZED):
            pay(len(owner))
            due = STR_METHODS.get(_obj.__name__)
            if due is not None:
                due(owner, *arguments, **named)
        elif isinstance(_obj, LoopContext):  # of a recursive loop
            arguments = tuple(_looped(each) for each in arguments)
        return super().call(_context, _obj, *arguments, **named)


def _looped(values: Any) -> Any:
    """What a loop goes through."""
    if isinstance(values, SIZED):
        pay(STEP * len(values))
        return values
    return values if isinstance(values, jinja2.Undefined) else _stepped(values)


def _concatenated(*values: Any) -> str:
    """`a ~ b`."""
    pay(sum([length_as_text(value) for value in values]))
    return "".join([str(value) for value in values])


def _handed_on(value: Any) -> Any:
    """A value that is compared, or of which a part is taken."""
    pay(length(value))
    return _stepped(value) if isinstance(value, Iterator) else value


@jinja2.pass_context
def _finalized(_context: Context, value: Any) -> Any:
    """What is printed, before `str` makes a text of it. (Constants are not printed early.)"""
    if not isinstance(value, str):
        pay(length_as_text(value))
    return value


def _stepped(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        pay(STEP)
        yield value


def _paying(function: Any, due: Callable[..., None] | None) -> Callable[..., Any]:
    """A filter or test that pays for its value first."""
    place = 1 if hasattr(function, "jinja_pass_arg") else 0  # some take the context first

    @functools.wraps(function)
    def paying(*arguments: Any, **named: Any) -> Any:
        value, others = arguments[place], arguments[place + 1 :]
        if isinstance(value, Iterator):
            value = list(_stepped(value))
            arguments = (*arguments[:place], value, *others)
        pay(STEP + sum([length(other) for other in others]) + length_as_text(value))
        if due is not None:
            due(value, *others, **named)
        return function(*arguments, **named)

    return paying


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as `transformers` has it: Jinja's own filter escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(layout: str) -> str:
    pay_format(layout, ())
    return datetime.now().strftime(layout)
