"""Prompts made from a catalog's columns by Jinja2 templates.

A template is a hostile program until shown otherwise. Only the nodes, filters and tests listed here compile:
no calls, no attributes, no globals. What is left can loop over a list and build text, so every row has a
budget that each step pays into by the text it makes, before the text is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar

import jinja2
import pyarrow as pa
from jinja2 import filters, nodes
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import LoopContext
from jinja2.sandbox import SandboxedEnvironment
from jinja2.visitor import NodeTransformer

from imagemill.catalog.columns import listed, nearest
from imagemill.errors import InputError
from imagemill.formatting import cut
from imagemill.settings import CatalogSettings

ROW_BUDGET = 1_000_000
"""The most characters that the steps of one row's template may make together."""

_STEP = 20
"""What a step costs in addition to the text it makes, in characters."""

_LARGEST_NUMBER = 2**63
_EXACT = 2.0**53
_ROW = "row"

_NODES = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.If, nodes.CondExpr),
    *(nodes.For, nodes.Assign, nodes.Filter, nodes.Keyword, nodes.Test, nodes.Getitem, nodes.Getattr),
    *(nodes.Slice, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Concat, nodes.Add),
    *(nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Neg, nodes.Pos, nodes.List),
    nodes.Tuple,
)
_LOOP = frozenset({"index", "index0", "revindex", "revindex0", "first", "last", "length"})


class _Null(jinja2.Undefined):
    """A row's missing value: false in a condition, replaced by ``default``, an error if it is printed."""

    def __str__(self) -> str:  # noqa: PLE0307 - it never returns
        self._fail_with_undefined_error()


class _Sandbox(SandboxedEnvironment):
    """Compiles templates and runs them. ``left`` is what remains of the row's budget."""

    intercepted_binops: ClassVar[frozenset[str]] = frozenset({"+", "-", "*", "/", "//", "%"})  # type: ignore[misc]

    def __init__(self) -> None:
        super().__init__(
            undefined=jinja2.StrictUndefined,
            finalize=self.printed,
            optimized=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.left = ROW_BUDGET
        self.globals = {}
        self.filters = {
            "abs": lambda value: abs(self.call_binop(None, "+", value, 0)),
            "capitalize": self._worded(str.capitalize),
            "concat": self._concat,
            "count": len,
            "d": filters.do_default,
            "default": filters.do_default,
            "first": lambda values: next(iter(values), self.undefined(name="first")),
            "float": filters.do_float,
            "int": filters.do_int,
            "join": self._join,
            "last": lambda values: values[-1] if values else self.undefined(name="last"),
            "length": len,
            "lower": self._worded(str.lower),
            "replace": self._replace,
            "reverse": lambda values: values[::-1],
            "round": self._round,
            "sort": self._sort,
            "steps": self._steps,
            "string": self.printed,
            "title": self._worded(filters.do_title),
            "trim": self._worded(str.strip),
            "truncate": self._truncate,
            "unique": lambda values: list(dict.fromkeys(values)),
            "upper": self._worded(str.upper),
        }
        known = self.tests
        kept = ("defined", "undefined", "string", "number", "boolean", "sequence", "mapping", "in")
        compared = ("eq", "equalto", "ne", "lt", "lessthan", "le", "gt", "greaterthan", "ge")
        self.tests = {name: known[name] for name in (*kept, *compared, "==", "!=", "<", "<=", ">", ">=")}
        self.tests["none"] = lambda value: value is None or isinstance(value, _Null)
        # A number only: text on the left of % would be a format, of any width.
        self.tests["even"] = lambda value: self.call_binop(None, "%", value, 2) == 0
        self.tests["odd"] = lambda value: self.call_binop(None, "%", value, 2) == 1
        self.tests["divisibleby"] = lambda value, by: self.call_binop(None, "%", value, by) == 0

    def pay(self, characters: int) -> None:
        """Take from the row's budget.

        Raises:
            jinja2.TemplateRuntimeError: it is used up.
        """
        self.left -= characters + _STEP
        if self.left < 0:
            raise jinja2.TemplateRuntimeError(f"it takes more than {ROW_BUDGET:,} characters of work")

    def printed(self, value: Any) -> str:  # noqa: ANN401 - whatever a column holds
        """A value as text, paid for."""
        if value.__class__ is not str:
            value = _text(value)
        self.left -= len(value) + _STEP
        if self.left < 0:
            self.pay(0)
        return value  # type: ignore[no-any-return]

    def getattr(self, obj: Any, attribute: str) -> Any:  # noqa: ANN401
        if isinstance(obj, LoopContext) and attribute in _LOOP:
            return getattr(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:  # noqa: ANN401
        if isinstance(obj, dict) or (isinstance(obj, (list, str)) and isinstance(argument, int)):
            try:
                found = obj[argument]
            except LookupError:
                return self.undefined(f"there is no {argument!r} in it")
            return _null(repr(argument)) if found is None else found
        if isinstance(obj, jinja2.Undefined):
            str(obj)
        return self.undefined(f"{argument!r} is no field of a value of the type {type(obj).__name__}")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401, ARG002
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            self.pay(len(left) + len(right))
            return left + right
        for value in (left, right):
            if isinstance(value, jinja2.Undefined):
                str(value)
            if not isinstance(value, (int, float, Decimal)):
                raise jinja2.TemplateRuntimeError(
                    f"{operator} takes numbers, not a value of the type {type(value).__name__}"
                    + ("; ~ joins text" if operator == "+" else "")
                )
        if isinstance(left, float) or isinstance(right, float):
            left, right = float(left), float(right)
        found = self.binop_table[operator](left, right)
        if abs(found) >= _LARGEST_NUMBER:
            raise jinja2.TemplateRuntimeError(f"{operator} makes a number of more than 63 bits")
        return found

    def _worded(self, change: Callable[[str], str]) -> Callable[[Any], str]:
        return lambda value: change(self.printed(value))

    def _concat(self, values: Sequence[Any]) -> str:
        return "".join([self.printed(value) for value in values])

    def _join(self, values: Iterable[Any], separator: str = "") -> str:
        if isinstance(values, str):
            return self.printed(values)
        texts = [self.printed(value) for value in values if value is not None]
        self.pay(len(separator) * len(texts))
        return separator.join(texts)

    def _replace(self, value: Any, old: str, new: str, count: int = -1) -> str:  # noqa: ANN401
        text = self.printed(value)
        found = text.count(old)
        self.pay((found if count < 0 else min(found, count)) * len(new))
        return text.replace(old, new, count)

    def _truncate(self, value: Any, length: int = 255, end: str = "…") -> str:  # noqa: ANN401
        text = self.printed(value)
        self.pay(len(end))
        if len(text) <= length:
            return text
        return text[: max(0, length - len(end))].rsplit(" ", 1)[0] + end

    def _round(self, value: Any, digits: int = 0) -> Any:  # noqa: ANN401
        # Of bounded digits: Python would raise 10 to any power for them.
        return round(self.call_binop(None, "+", value, 0), min(15, max(0, digits)) or None)

    def _sort(self, values: Iterable[Any]) -> list[Any]:
        return sorted(self._steps(values, 0))

    def _steps(self, values: Iterable[Any], characters: int) -> Iterator[Any]:
        """The items of a loop; each step is charged with the text inside the loop."""
        if isinstance(values, jinja2.Undefined) and not isinstance(values, _Null):
            str(values)
        if not isinstance(values, (list, str, jinja2.Undefined)):
            raise jinja2.TemplateRuntimeError(f"a value of the type {type(values).__name__} is no list")
        for value in values:
            self.pay(characters)
            yield _null("an element of a list") if value is None else value


def _text(value: Any) -> str:  # noqa: ANN401
    """A value as a prompt has it.

    Raises:
        jinja2.TemplateRuntimeError: a list or a struct has no such form.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))  # pandas turns whole numbers into floats where one is missing
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, tuple)):
        raise jinja2.TemplateRuntimeError("a list cannot be printed; join it, as in {{ tags | join(', ') }}")
    if isinstance(value, dict):
        raise jinja2.TemplateRuntimeError(
            "a struct cannot be printed; name its field, as in {{ size.width }}"
        )
    return str(value)


def _null(what: str) -> _Null:
    return _Null(f"{what} is empty in this row; say what stands for it, as in default('…')")


class _Bounds(NodeTransformer):
    """Charges loops and ``~`` to the row's budget, and turns ``row['A name']`` into a name."""

    def __init__(self) -> None:
        self.quoted: dict[str, str] = {}
        """The columns that were named as ``row['A name']``, by the variables that stand for them."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - named after the node
        characters = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "steps", [nodes.Const(characters)], [], None, None)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "concat", [], [], None, None)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.node, nodes.Name) and node.node.name == _ROW:
            if not (isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str)):
                raise InputError("names a column as row[…], which takes the name itself, in quotes")
            name = f"row__quoted_{len(self.quoted)}"
            self.quoted[name] = node.arg.value
            return nodes.Name(name, "load")
        return node


def _refuse_unsafe(tree: nodes.Template, made: _Sandbox) -> None:
    """Check that a template uses only what is listed here.

    Raises:
        InputError: it has; the message is the end of a sentence.
    """
    for node in tree.find_all(nodes.Node):
        if not isinstance(node, _NODES):
            what = type(node).__name__.lower()
            raise InputError(
                f"has a node that templates cannot have, {what} (line {node.lineno}): they have columns,"
                " filters, if and for, and no calls"
            )
        if isinstance(node, nodes.Name) and node.name in {"self", "super"}:
            raise InputError(f"uses the name {node.name!r}; a column of that name is row[{node.name!r}]")
        if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
            raise InputError(f"asks for .{cut(node.attr, 40)} (line {node.lineno}), which it cannot have")
        if isinstance(node, nodes.Filter) and node.name not in made.filters.keys() - {"steps", "concat"}:
            usual = ", ".join(sorted(made.filters.keys() - {"steps", "concat"}))
            raise InputError(f"has the filter {cut(node.name, 40)!r} (line {node.lineno}); there are {usual}")
        if isinstance(node, nodes.Test) and node.name not in made.tests:
            raise InputError(f"has the test {cut(node.name, 40)!r} (line {node.lineno}), which is not known")
        if isinstance(node, (nodes.List, nodes.Tuple)) and not all(
            isinstance(item, nodes.Const) for item in node.items
        ):
            raise InputError(f"makes a list of more than constants (line {node.lineno})")
        if isinstance(node, nodes.For) and (node.recursive or not isinstance(node.target, nodes.Name)):
            raise InputError(f"has a loop over more than one name (line {node.lineno})")
        if isinstance(node, nodes.Assign) and not isinstance(node.target, nodes.Name):
            raise InputError(f"sets more than a name (line {node.lineno})")


class Template:
    """A template compiled for the columns of one catalog.

    Args:
        text: the template.
        title: what it is, to begin a sentence: "The prompt template".
        seen: the table's column for each name that the template may use.

    Raises:
        InputError: it does not compile, does more than a template may, or names no column.
    """

    def __init__(self, text: str, title: str, seen: Mapping[str, str]) -> None:
        self._title = title
        self._made = _Sandbox()
        try:
            tree = self._made.parse(text)
            _refuse_unsafe(tree, self._made)
            bounds = _Bounds()
            tree = bounds.visit(tree)
            names = sorted(find_undeclared_variables(tree))
            compiled = self._made.from_string(tree)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(f"{title} is not right in line {error.lineno}: {error.message}") from error
        except InputError as error:
            raise InputError(f"{title} {error}.") from None
        except (RecursionError, MemoryError, SyntaxError) as error:
            raise InputError(f"{title} is nested too deeply.") from error
        self._render, self._new_context = compiled.root_render_func, compiled.new_context
        columns = {name: bounds.quoted.get(name, name) for name in names}
        for column in columns.values():
            if column not in seen:
                raise InputError(_no_such_column(title, column, list(seen)))
        self._read = {name: seen[column] for name, column in columns.items()}
        self._nulls = [_null(f"the column {column!r}") for column in columns.values()]

    @property
    def columns(self) -> frozenset[str]:
        """The table's columns that the template reads."""
        return frozenset(self._read.values())

    def render(self, table: pa.Table) -> tuple[list[str | None], dict[int, str]]:
        """The text of each row, and by place the reason why a row has none."""
        names = list(self._read)
        values = [
            _values(table[column], null)
            for column, null in zip(self._read.values(), self._nulls, strict=True)
        ]
        texts: list[str | None] = []
        reasons: dict[int, str] = {}
        made, render, new_context = self._made, self._render, self._new_context
        rows = zip(*values, strict=True) if values else iter([()] * table.num_rows)
        for place, row in enumerate(rows):
            made.left = ROW_BUDGET
            try:
                text = "".join(render(new_context(dict(zip(names, row, strict=True)), shared=True)))
            except Exception as error:  # noqa: BLE001 - whatever a template does, its row is rejected
                texts.append(None)
                reasons[place] = f"{self._title[4:]} fails: {cut(str(error) or type(error).__name__, 200)}"
            else:
                texts.append(text)
        return texts, reasons


def _values(column: pa.ChunkedArray, null: _Null) -> list[Any]:
    """A column's values, with ``null`` for missing ones and for NaN."""
    values = column.to_pylist()
    if pa.types.is_floating(column.type):
        return [null if value is None or value != value else value for value in values]
    return [null if value is None else value for value in values] if column.null_count else values


def _no_such_column(title: str, name: str, names: Sequence[str]) -> str:
    return (
        f"{title} uses {cut(name, 60)!r}, which is no column of the catalog{nearest(name, names)}."
        f" Its columns: {listed(names)}."
    )


def varied_column(name: str) -> str:
    """The table's column for a name that is varied."""
    return f"varied:{name}"


@dataclass(frozen=True, slots=True)
class CatalogTemplates:
    """The templates of one catalog, by the column that each makes: ``prompt``, ``negative_prompt``."""

    made: Mapping[str, Template] = field(default_factory=dict)

    @classmethod
    def of(
        cls, settings: CatalogSettings, names: Sequence[str], columns: Mapping[str, str]
    ) -> CatalogTemplates:
        """Compile a catalog's templates for its columns.

        Args:
            settings: which templates there are.
            names: the catalog's columns.
            columns: those that imagemill reads itself, by its own names; without those that templates make.

        Raises:
            InputError: a template cannot be used with this catalog.
        """
        own = {catalogs: mine for mine, catalogs in columns.items()}
        seen = {name: own.get(name) or f"carried:{name}" for name in names}
        for mine, catalogs in {**columns, **settings.columns}.items():
            if catalogs in seen:
                seen.setdefault(mine, seen[catalogs])
        for name in settings.vary:
            seen.setdefault(name, varied_column(name))
        return cls(
            {
                name: Template(text, f"The {name.replace('_', ' ')} template", seen)
                for name, text in settings.templates.items()
            }
        )

    @property
    def columns(self) -> frozenset[str]:
        """The table's columns that the templates read."""
        return frozenset().union(*[template.columns for template in self.made.values()])

    def applied(self, table: pa.Table, reasons: dict[int, str]) -> pa.Table:
        """The table with the columns that the templates make; ``reasons`` gets the rows where one fails."""
        columns = {}
        for name, template in self.made.items():
            texts, failed = template.render(table)
            if name == "prompt":
                blank = {place for place, text in enumerate(texts) if text is not None and not text.strip()}
                failed |= dict.fromkeys(blank, "the prompt template renders blank")
            for place, reason in failed.items():
                reasons.setdefault(place, reason)
            columns[name] = pa.array(texts, pa.string())
        for name, column in columns.items():
            table = table.append_column(name, column)
        return table
