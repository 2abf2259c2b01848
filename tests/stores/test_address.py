"""Addresses of stores, and that their passwords stay out of everything that is written down."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from imagemill.blocks.loading import job_store
from imagemill.blocks.store_servers import PostgresServer, RedisServer, StoreServer
from imagemill.catalog.counts import PlanCounts
from imagemill.errors import InputError
from imagemill.runs.folder import RunFolder
from imagemill.settings import ExecutionSettings, RunSettings
from imagemill.store_address import address_of, split_password
from imagemill.stores import open_store

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("given", "stripped"),
    [
        ("postgresql://mill:hunter2@db:5432/jobs", "postgresql://mill@db:5432/jobs"),
        ("postgres://mill:a@b:c/d?e#hunter2@db/jobs", "postgres://mill@db/jobs"),
        ("redis://:hunter2@cache/0", "redis://@cache/0"),
        ("rediss://u:hunter2@[::1]:6380", "rediss://u@[::1]:6380"),
        ("postgresql://db/jobs?password=hunter2&sslmode=require", "postgresql://db/jobs?sslmode=require"),
        ("postgresql://db/jobs?sslmode=require&password=hunter2", "postgresql://db/jobs?sslmode=require"),
        ("mysql://u:hunter2@db/x", "mysql://u@db/x"),
        ("postgresql://db/jobs", "postgresql://db/jobs"),
        ("sqlite:/a:b@c?password=d", "sqlite:/a:b@c?password=d"),
        ("memory", "memory"),
    ],
)
def test_passwords_are_taken_out(given: str, stripped: str) -> None:
    address, password = split_password(given)
    assert address == stripped
    assert (password is None) is (given == stripped)
    assert split_password(stripped) == (stripped, None)


def test_the_parts_of_an_address() -> None:
    address = address_of(
        "postgresql://mi%40ll:h%3Aunter2@db/jobs?sslmode=require", port=5432, options=("sslmode",)
    )
    assert (address.user, address.host, address.port, address.database) == ("mi@ll", "db", 5432, "jobs")
    assert address.password == "h:unter2"
    assert address.query == {"sslmode": "require"}
    assert "unter2" not in f"{address} {address!r}"
    assert address_of("redis://[::1]", port=6379, options=()).host == "::1"


def test_the_environment_has_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address_of("redis://h", port=1, options=()).password is None
    monkeypatch.setenv("IMAGEMILL_STORE_PASSWORD", f"{SECRET}\n")  # as secret stores hand it out
    assert address_of("redis://h", port=1, options=()).password == SECRET


@pytest.mark.parametrize(
    "bad",
    [
        "postgresql://u:hunter2", "postgresql://u:hunter2@h:99999/d", "postgresql://u:hunter2@h:port/d",
        "redis://u:hunter2@h/zero", "redis://u:hunter2@h?x=1", "postgresql://u:hunter2@h/d?sslmode=maybe",
        "mysql://u:hunter2@h/d", "hunter2",
    ],
)  # fmt: skip
def test_a_bad_address_is_refused_without_its_password(bad: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        open_store(bad, rows=1, run_id="r", folder=tmp_path)
    assert SECRET not in str(refused.value) or bad == SECRET


def test_neither_settings_nor_the_record_hold_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEMILL_HOME", str(tmp_path))
    execution = ExecutionSettings(store="postgresql://mill:hunter2@db/jobs")
    settings = RunSettings(
        run_id="r", catalog="c.parquet", api="fal", output="s3://bucket/x", execution=execution
    )
    folder = RunFolder("r")
    folder.create()
    folder.write_record(settings, PlanCounts(1, 0, 1, 0, 0.0, 0.0), "digest", "model")
    assert SECRET not in folder.record.read_text() + repr(settings) + settings.model_dump_json()
    record = folder.read_record()
    assert record
    assert record[0].execution.store == "postgresql://mill@db/jobs"
    # The settings that were given it can still open the store; copies that leave the process cannot.
    assert job_store(settings.execution) == ("postgresql://mill@db/jobs", SecretStr(SECRET))
    assert SECRET.encode() not in pickle.dumps(settings)
    assert pickle.loads(pickle.dumps(settings)) == record[0]


@pytest.mark.parametrize("block", [PostgresServer, RedisServer])
def test_a_block_keeps_the_password_secret(block: type[StoreServer]) -> None:
    url = f"{block.schemes[0]}://mill@db/0"
    saved = block(url=url, password=SecretStr(SECRET))
    assert SECRET not in repr(saved) + str(saved.model_dump())
    assert address_of(saved.url, port=1, options=(), password=saved.password).password == SECRET
    for bad in (f"{block.schemes[0]}://mill:{SECRET}@db", "http://db"):
        with pytest.raises(ValidationError, match=r"password in its own field|must begin with") as refused:
            block(url=bad)
        assert SECRET not in str(refused.value)
    assert block.get_description()
    assert block.get_code_example()
