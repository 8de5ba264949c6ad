"""The page and the server that ships with it: a tiny random model, `smallgpt serve`, and Chromium."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure.tokenizers import byte_tokenizer
from tests.interfaces.http.page.acting import OpenPage, story, until, write

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a model whose tokens are random bytes is served."""
    folder = tmp_path_factory.mktemp("models") / "babble"
    folder.mkdir()
    config = GPTConfig(block_size=64, vocab_size=257, n_layer=1, n_head=2, n_embd=16, dropout=0.0)
    torch.manual_seed(1)
    save_file({name: p.detach().clone() for name, p in GPT(config).named_parameters()}, folder / "model.safetensors")
    Path(folder / "config.json").write_text(config.model_dump_json())
    byte_tokenizer().save(folder / "tokenizer.json")
    command = [sys.executable, "-m", "smallgpt", "serve", str(folder), "--port", "0", "--device", "cpu", "--grace", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()  # "serving babble at http://127.0.0.1:40963 (Ctrl-C ends it)"
        try:
            yield line.split()[3]
        finally:
            server.terminate()


@pytest.fixture
def page(open_page: OpenPage, url: str) -> Iterator["Page"]:
    opened = open_page(url)
    opened.page.fill("#max-tokens", "40")
    yield opened.page
    assert opened.complaints == []
    assert all(asked.startswith(url + "/") for asked in opened.asked), opened.asked


def test_a_story_is_written_to_its_end(page: "Page") -> None:
    page.fill("#beginning", "Once")
    page.fill("#seed", "5")
    write(page)
    assert page.text_content("#error") == ""
    assert page.text_content("#model") == "babble"
    first = story(page)
    assert first.startswith("Once")
    assert page.locator("#tokens .token").count() > 10
    until(page, "document.getElementById('figures').textContent.includes('tokens/s')")
    page.hover("#tokens .token >> nth=0")
    assert page.locator("#card tr").count() >= 5
    page.click("#retry")
    page.wait_for_selector("#story[aria-busy=false]")
    assert story(page) == first  # the same seed
    page.click("#continue")
    page.wait_for_selector("#story[aria-busy=false]")
    assert story(page).startswith(first)
    assert len(story(page)) > len(first)


def test_a_long_story_is_stopped_and_its_stream_is_free_again(page: "Page", url: str) -> None:
    page.fill("#max-tokens", "2000")
    page.fill("#temperature", "0")  # the likeliest token of this model is never the end
    page.click("#write")
    page.wait_for_selector("#tokens .token:nth-child(5)")
    page.click("#stop")
    page.wait_for_selector("#story[aria-busy=false]")
    assert (page.text_content("#status") or "").startswith("Stopped, after ")
    stopped = story(page)
    page.wait_for_timeout(200)
    assert story(page) == stopped
    page.fill("#max-tokens", "10")
    write(page)
    assert page.text_content("#error") == ""


def test_more_tokens_than_the_server_gives_is_told_in_its_words(open_page: OpenPage, url: str) -> None:
    page = open_page(url).page  # the browser itself notes the refusal
    page.fill("#max-tokens", "99999")
    page.click("#write")
    until(page, "document.getElementById('error').textContent.includes('max_tokens')")
