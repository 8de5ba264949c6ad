"""One server for all tests that leave it as it was."""

from collections.abc import Iterator

import openai
import pytest

from tests.loopback.model_server import PATIENCE, ModelServer, model_server


@pytest.fixture(scope="session")
def server() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running


@pytest.fixture
def client(server: ModelServer) -> Iterator[openai.OpenAI]:
    """OpenAI's own."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as made:
        yield made
