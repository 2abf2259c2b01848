"""The blocks keep Prefect's own conventions, and Prefect finds them."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites import BlockStandardTestSuite

from imagemill import blocks
from imagemill.blocks.apis import PROVIDERS
from imagemill.blocks.store_servers import PostgresServer, RedisServer
from tests.installation import run_prefect


@pytest.mark.parametrize("block", PROVIDERS.values(), ids=list(PROVIDERS))
class TestImageApis(BlockStandardTestSuite):
    @pytest.fixture
    def block(self) -> type[Block]:
        raise NotImplementedError  # parametrized above

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        """Prefect's own test fetches it from the network; the picture is whatever the vendor has there."""
        assert re.fullmatch(r"https://github\.com/[A-Za-z-]+\.png", str(block._logo_url))

    def test_its_slug_and_name_are_its_own(self, block: type[Block]) -> None:
        assert block.get_block_type_slug().startswith("imagemill-")
        assert block.get_block_type_name().startswith("Image API: ")


@pytest.mark.parametrize("block", [PostgresServer, RedisServer])
class TestJobStores(BlockStandardTestSuite):
    @pytest.fixture
    def block(self) -> type[Block]:
        raise NotImplementedError  # parametrized above

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        """Prefect's own test fetches it from the network; the picture is whatever the vendor has there."""
        assert re.fullmatch(r"https://github\.com/[A-Za-z-]+\.png", str(block._logo_url))


def test_the_package_exports_every_block() -> None:
    exported = [getattr(blocks, name) for name in dir(blocks)]
    assert all(block in exported for block in (*PROVIDERS.values(), PostgresServer, RedisServer))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = blocks.Nothing


def test_the_errors_are_there_without_prefect() -> None:
    command = "import sys, imagemill.errors; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


@pytest.mark.slow
def test_prefect_registers_them(prefect_server: str) -> None:
    environment = {**os.environ, "PREFECT_API_URL": prefect_server}
    registered = run_prefect("block", "register", "-m", "imagemill.blocks", environment=environment)
    assert "Successfully registered 9 blocks" in registered
