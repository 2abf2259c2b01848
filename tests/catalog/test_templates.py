"""Prompts made from columns: what is rendered is keyed and stored, and a template can do no harm."""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from imagemill.blocks.apis import Together
from imagemill.catalog.estimate import estimate
from imagemill.catalog.files import open_catalog
from imagemill.catalog.plan import Planner, write_plan
from imagemill.cli.command import main
from imagemill.cli.options import add_options, settings_of
from imagemill.cli.parser import Parser
from imagemill.errors import InputError
from imagemill.jobs import Job
from imagemill.settings import CatalogSettings, PictureSettings

PRODUCTS = {
    "sku": ["m-1", "c-2", "v-3"],
    "title": ["Mug", "Chair", "Vase"],
    "colour": ["RED", None, "Blue"],
    "price": [Decimal("9.90"), Decimal("120.00"), None],
    "year": pa.array([1998, None, 2024], pa.float64()),
    "tags": [["round", "glazed"], [], None],
    "size": [{"height": 12}, None, {"height": 30}],
    "Shelf life": ["a", "b", "c"],
}


def prompts(
    path: str, template: str, **settings: Any
) -> tuple[list[str], dict[int, str], pa.Table, list[Job]]:
    """The prompts of the jobs, the reasons of the rejected rows by row, the plan and the jobs."""
    catalog = open_catalog(CatalogSettings(path=path, prompt_template=template, **settings))
    planner = Planner(Together(api_key=SecretStr("k")), PictureSettings())
    jobs: list[Job] = []
    place = Path(path).parent
    write_plan(planner, catalog, place / "plan", place / "rejected", jobs.extend)
    reasons = {row["row"]: row["reason"] for row in pq.read_table(place / "rejected").to_pylist()}
    return [job.prompt for job in jobs], reasons, pq.read_table(place / "plan"), jobs


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("Photo of {{ title }}, {{ colour | default('plain') | lower }}", "Photo of Chair, plain"),
        ("{{ title }}{% if colour %}, {{ colour }}{% endif %} for {{ price }} EUR", "Chair for 120.00 EUR"),
        ("{{ title }} of {{ year | default(2025) }}", "Chair of 2025"),
        ("{{ title }}: {{ tags | join(' and ') }}", "Chair:"),
        ("{{ title }}{% for tag in tags %}, {{ tag }}{% endfor %}.", "Chair."),
        ("{{ row['Shelf life'] | upper }} {{ title[:2] }}", "B Ch"),
        ("{{ 'cheap' if price < 50 else 'fine' }} {{ title }}", "fine Chair"),
        ("{{ title | replace('Ch', 'St') | truncate(3) }}", "St…"),
        ("{% if colour is none %}no colour{% endif %}", "no colour"),
    ],
)
def test_a_template_makes_the_prompt(catalog: Callable[..., str], template: str, rendered: str) -> None:
    rows, rejected, _, _ = prompts(
        catalog(**{name: values[1:2] for name, values in PRODUCTS.items()}), template
    )
    assert (rows, rejected) == ([rendered], {})


def test_values_are_worded_as_a_person_would(catalog: Callable[..., str]) -> None:
    rows, _, _, _ = prompts(
        catalog(**PRODUCTS), "{{ title }} {{ year | default('?') }} {{ tags | join('/') }} {{ size.height }}",
    )  # fmt: skip
    assert rows == ["Mug 1998 round/glazed 12", "Vase 2024  30"]


def test_a_row_whose_template_fails_or_is_blank_is_rejected(catalog: Callable[..., str]) -> None:
    path = catalog(title=["Mug", "Chair", "Vase", "Lamp"], colour=["Red", None, "", " "])
    rows, rejected, _, _ = prompts(path, "{{ colour | trim }}")
    assert rows == ["Red"]
    assert rejected[1].startswith("prompt template fails: the column 'colour' is empty in this row; say what")
    assert rejected[2] == rejected[3] == "the prompt template renders blank"
    again = Path(path).with_name("rejected").rename(Path(path).with_name("repaired.parquet"))
    rows, rejected, _, _ = prompts(str(again), "{{ title }} {{ colour | default('plain') }}")
    assert rows == ["Chair plain", "Vase", "Lamp"]
    assert rejected == {}


def test_the_rendered_prompt_is_keyed_and_the_plan_keeps_its_columns(catalog: Callable[..., str]) -> None:
    path = catalog(prompt=["mug", "chair"], title=["Mug", "Chair"])
    rows, _, plan, jobs = prompts(path, "{{ title }}, once called {{ prompt }}")
    assert rows == plan["prompt"].to_pylist() == ["Mug, once called mug", "Chair, once called chair"]
    assert plan["carried:prompt"].to_pylist() == ["mug", "chair"]
    assert plan["carried:title"].to_pylist() == ["Mug", "Chair"]
    plain = catalog("plain.parquet", prompt=rows)
    _, _, _, same = prompts(plain, "{{ prompt }}")
    assert [job.key for job in same] == [job.key for job in jobs]


def test_a_mapped_column_has_both_names(catalog: Callable[..., str]) -> None:
    path = catalog(sku=["a"], text=["Mug"])
    rows, _, plan, jobs = prompts(
        path, "{{ prompt }} {{ text }} {{ id }} {{ sku }}", columns={"prompt": "text", "id": "sku"}
    )
    assert rows == ["Mug Mug a a"]
    assert (jobs[0].id, plan["carried:text"].to_pylist()) == ("a", ["Mug"])


def test_a_negative_prompt_has_its_own_template(catalog: Callable[..., str]) -> None:
    path = catalog(title=["Mug", "Chair"], avoid=["blur", None])
    catalog_settings = CatalogSettings(
        path=path, prompt_template="{{ title }}", negative_prompt_template="{{ avoid | default('') }}, text"
    )
    found = estimate(catalog_settings)
    assert (found.unique, found.rejected) == (2, 0)
    _, _, plan, _ = prompts(path, "{{ title }}", negative_prompt_template="{{ avoid | default('') }}")
    assert plan["negative_prompt"].to_pylist() == ["blur", None]


def test_a_template_comes_from_a_file(catalog: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "prompt.j2"
    file.write_text("{% if colour %}\n{{ colour }} {% endif %}\n{{ title }}\n")
    assert _template_given(f"@{file}") == file.read_text()
    file.write_text("@{{ title }}")
    assert prompts(catalog(title=["Mug"]), _template_given(f"@{file}"))[0] == ["@Mug"]
    with pytest.raises(InputError, match=r"^--prompt-template '@/nowhere.j2': .* cannot be read: No such"):
        _template_given("@/nowhere.j2")


def test_a_flow_reads_a_template_only_from_its_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    templates = tmp_path / "templates"
    templates.mkdir()
    for file in (templates / "prompt.j2", tmp_path / "secret.j2", templates / "key.pem"):
        file.write_text("{{ title }}")
    (templates / "link.j2").symlink_to(tmp_path / "secret.j2")
    settings = CatalogSettings(path="x", prompt_template="@templates/prompt.j2")
    assert settings.prompt_template == "{{ title }}"
    assert CatalogSettings(**settings.model_dump()) == settings  # as a resume on another machine reads it
    for name in (
        "secret.j2",
        "templates/../secret.j2",
        "/etc/passwd",
        "templates/key.pem",
        "templates/link.j2",
    ):
        for kind in ("prompt_template", "negative_prompt_template"):
            with pytest.raises(InputError, match=r"is @templates/NAME\.j2, in the folder where the flow"):
                estimate({"path": "x", kind: f"@{name}"})


def _template_given(text: str) -> str:
    parser = Parser()
    add_options(parser)
    template: str = settings_of(
        parser.parse_args(["--prompt-template", text]), "catalog", path="x"
    ).prompt_template
    return template


def test_the_command_names_the_closest_column(
    catalog: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = catalog(title=["Mug"], colour=["red"])
    assert main(["estimate", path, "--prompt-template", "{{ title }} {{ color }}"]) == 2
    assert capsys.readouterr().err == (
        "imagemill: The prompt template uses 'color', which is no column of the catalog; the closest is"
        " 'colour'. Its columns: title, colour.\n"
    )
    assert main(["estimate", path, "--json", "--prompt-template", "{{ title }}"]) == 0


@pytest.mark.parametrize(
    "template",
    [
        "{{ title.__class__ }}", "{{ title.upper() }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for i in range(10**9) %}x{% endfor %}", "{{ 'a' * 10**9 }}", "{{ title | attr('upper') }}",
        "{{ cycler }}", "{{ self }}", "{% include '/etc/passwd' %}", "{% import 'os' as os %}{{ os }}",
        "{% macro a() %}{{ a() }}{% endmacro %}", "{{ lipsum() }}", "{{ title | center(10000000) }}",
        "{{ {} }}", "{{ row[title] }}", "{{ title", "{% if title %}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    ],
)  # fmt: skip
def test_a_template_that_reaches_further_is_refused(catalog: Callable[..., str], template: str) -> None:
    with pytest.raises(InputError, match=r"^The prompt template "):
        prompts(catalog(title=["Mug"]), template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 999999999 }}",
        "{{ '%0999999999d' % 1 }}",
        "{{ 'x' if '%0999999999d' is even }}",
        "{{ 1 | round(-999999999) }}{{ 'x' * 2 }}",
        "{% set x = title %}" + "{% set x = x ~ x %}" * 60 + "{{ x }}",
        "{% set x = title %}" + "{% set x = x | replace('a', 'aaaaaaaaaa') %}" * 60 + "{{ x }}",
        "{% set x = title %}" + "{% set x = x + x %}" * 60 + "{{ x }}",
        "{% set x = 9 %}" + "{% set x = x * x %}" * 60 + "{{ x }}",
        "".join(f"{{% for {name} in title %}}" for name in "abcdefgh") + "x" + "{% endfor %}" * 8,
    ],
)
def test_a_template_that_would_take_for_ever_fails_at_once(
    catalog: Callable[..., str], template: str
) -> None:
    begun = time.process_time()
    rows, rejected, _, _ = prompts(catalog(title=["a" * 100] * 3), template)
    assert (rows, len(rejected)) == ([], 3)
    assert time.process_time() - begun < 3
