"""A chat's story and settings, without a terminal or a model."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallgpt.domain.errors import ConfigError, NumericsError
from smallgpt.domain.sampling import Sampling
from smallgpt.interfaces.chatting import COMMANDS, Chat, Turn
from smallgpt.interfaces.continuing import Settings


class Recorder:
    """A screen whose model tells the seed."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, Settings]] = []
        self.said: list[str] = []
        self.shown: list[str] = []
        self.fails = False

    def tell(self, story: str, seed: int, settings: Settings) -> str:
        if self.fails:
            raise NumericsError("not finite")
        self.asked.append((story, seed, settings))
        return f" <{seed}>"

    def show(self, turns: Sequence[Turn]) -> None:
        self.shown.append("".join(turn.typed + turn.told for turn in turns))

    def say(self, words: str) -> None:
        self.said.append(words)


@pytest.fixture
def screen() -> Recorder:
    return Recorder()


@pytest.fixture
def chat(screen: Recorder) -> Chat:
    return Chat(Settings(Sampling(temperature=0.8)), seed=5, screen=screen)


def story(chat: Chat, screen: Recorder) -> str:
    assert chat.do("/show")
    return screen.shown[-1]


def test_the_model_goes_on_from_the_whole_story(chat: Chat, screen: Recorder) -> None:
    for line in ("Once", "Tom ran", "", "  and ran. \n"):
        assert chat.do(line)
    assert [asked for asked, _, _ in screen.asked] == [
        "Once",
        "Once <5> Tom ran",
        "Once <5> Tom ran <6>",
        "Once <5> Tom ran <6> <7> and ran.",
    ]
    assert story(chat, screen) == "Once <5> Tom ran <6> <7> and ran. <8>"


@pytest.mark.parametrize(
    ("line", "story"), [(", she said", "Once <5>, she said"), ("?", "Once <5>?"), ('"Yes"', 'Once <5> "Yes"')]
)
def test_words_are_kept_apart_and_punctuation_is_not(chat: Chat, screen: Recorder, line: str, story: str) -> None:
    chat.do("Once")
    chat.do(line)
    assert screen.asked[-1][0] == story


def test_retry_tells_the_last_turn_again_with_another_seed(chat: Chat, screen: Recorder) -> None:
    for line in ("Once", "Tom ran", "/retry", "/retry"):
        chat.do(line)
    assert story(chat, screen) == "Once <5> Tom ran <8>"
    assert screen.asked[-1][0] == "Once <5> Tom ran"


def test_undo_takes_turns_back_one_by_one(chat: Chat, screen: Recorder) -> None:
    for line in ("Once", "Tom ran", "/undo"):
        chat.do(line)
    assert story(chat, screen) == "Once <5>"
    assert screen.said == ["the story ends now: …Once <5>"]
    chat.do("/undo")
    assert story(chat, screen) == ""
    assert screen.said[-1] == "the story is empty now"
    for line in ("/undo", "/retry"):
        with pytest.raises(ConfigError, match=f"there is nothing to {line[1:]}; write a beginning"):
            chat.do(line)


def test_new_begins_another_story(chat: Chat, screen: Recorder) -> None:
    for line in ("Once", "/new", "Later"):
        chat.do(line)
    assert story(chat, screen) == "Later <6>"


def test_the_same_seed_and_lines_tell_the_same_story(chat: Chat, screen: Recorder) -> None:
    lines = ["Once", "Tom", "/retry", "ran"]
    for line in lines:
        chat.do(line)
    first, asked = story(chat, screen), list(screen.asked)
    for line in ("/new", "/seed 5", *lines):
        chat.do(line)
    assert story(chat, screen) == first
    assert screen.asked == asked * 2


def test_settings_change_what_the_next_text_is_asked_with(chat: Chat, screen: Recorder) -> None:
    for line in (
        "/temperature 0.5", "/top-k 7", "/top-p .9", "/min-p 0.1", "/repetition-penalty 1.5",
        "/max-new-tokens 44", "/min-new-tokens 3", "/stop .\\n", "Once",
    ):  # fmt: skip
        assert chat.do(line)
    assert screen.asked[-1][2] == Settings(Sampling(0.5, 7, 0.9, 0.1, 1.5), 44, 3, stops=(".\n",))
    for line in ("/top-k off", "/top-p off", "/min-p off", "/stop", "/set"):
        chat.do(line)
    assert chat.settings == Settings(Sampling(0.5, repetition_penalty=1.5), 44, 3)
    listed = dict(line.split() for line in screen.said[-1].splitlines())
    assert listed == {
        "temperature": "0.5", "top-k": "off", "top-p": "off", "min-p": "off", "repetition-penalty": "1.5",
        "max-new-tokens": "44", "min-new-tokens": "3", "seed": "6", "stop": "off",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/temperature warm", "temperature is 'warm'; it must be a number: /temperature X"),
        ("/temperature", "temperature is ''; it must be a number"),
        ("/temperature -1", "temperature is -1.0; it must be 0 or more"),
        ("/temperature nan", "temperature is nan"),
        ("/temperature off", "temperature is 'off'"),
        ("/top-k 0", "top-k is 0; it must be 1 or more"),
        ("/top-k 2.5", "top-k is '2.5'; it must be a whole number: /top-k N"),
        ("/top-p 2", "top-p is 2.0"),
        ("/max-new-tokens 0", "max-new-tokens is 0"),
        ("/min-new-tokens 201", "min-new-tokens is 201"),
        ("/seed -1", "seed is '-1'; it must be a whole number"),
        ("/seed 99999999999999999999", "seed is '99999999999999999999'"),
        ("/save", "a file name is missing: /save FILE"),
        ("/tempratur 1", "unknown command '/tempratur'; did you mean /temperature?\n/help lists them all"),
        ("/temp", "did you mean /temperature?"),
        ("/rety", "did you mean /retry?"),
        ("/", "unknown command '/'\n"),
        ("/save x", "there is nothing to save; write a beginning first"),
    ],
)
def test_a_mistake_is_explained_and_changes_nothing(
    chat: Chat, line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = chat.settings, chat.seed
    with pytest.raises(ConfigError) as error:
        chat.do(line)
    assert message in str(error.value)
    assert (chat.settings, chat.seed, chat.turns) == (*before, [])
    assert not list(tmp_path.iterdir())


def test_a_text_that_fails_is_no_turn(chat: Chat, screen: Recorder) -> None:
    chat.do("Once")
    screen.fails = True
    for line in ("Tom", "/retry"):
        with pytest.raises(NumericsError):
            chat.do(line)
    assert story(chat, screen) == "Once <5>"
    assert chat.seed == 6


def test_a_story_is_saved_and_no_file_replaced_unasked(chat: Chat, screen: Recorder, tmp_path: Path) -> None:
    file = tmp_path / "my story.txt"
    chat.do("Zoë")
    chat.do(f"/save {file}")
    assert screen.said == [f"saved as {file}"]
    assert file.read_text(encoding="utf-8") == "Zoë <5>\n"
    chat.do("ran")
    with pytest.raises(ConfigError, match=r"is there; /save! .*my story\.txt replaces it"):
        chat.do(f"/save {file}")
    assert file.read_text(encoding="utf-8") == "Zoë <5>\n"
    chat.do(f"/save! {file}")
    assert file.read_text(encoding="utf-8") == "Zoë <5> ran <6>\n"
    for place in (tmp_path / "no" / "file", tmp_path):
        with pytest.raises(OSError, match=r"No such file|directory"):
            chat.do(f"/save! {place}")
    assert [path.name for path in tmp_path.iterdir()] == ["my story.txt"]


def test_help_names_every_command_and_every_command_is_known(chat: Chat, screen: Recorder) -> None:
    assert chat.do("/help")
    assert all(f"  /{name} " in screen.said[0] for name in COMMANDS)
    assert max(map(len, screen.said[0].splitlines())) <= 110
    for name in COMMANDS:
        mistake = ""
        try:
            assert chat.do(f"/{name}") == (name != "quit")
        except ConfigError as error:
            mistake = str(error)
        assert "unknown" not in mistake


@given(
    st.lists(
        st.one_of(
            st.sampled_from(["/retry", "/undo", "/new", "/show", "/set", "/seed 3", "/top-k 2", "/top-k x", "/zzz"]),
            st.text("ab .,\n", max_size=6),
        ),
        max_size=25,
    )
)
def test_whatever_is_typed_the_story_is_what_its_turns_say(lines: list[str]) -> None:
    screen = Recorder()
    chat = Chat(Settings(), seed=0, screen=screen)
    length = 0
    for line in lines:
        try:
            chat.do(line)
        except ConfigError:
            continue
        finally:
            told = len(screen.asked)
        match line.strip():
            case "/undo":
                length -= 1
            case "/new":
                length = 0
            case word if not word.startswith("/"):
                length += 1
        assert len(chat.turns) == length
        assert chat.seed in (told, *range(3, 3 + told + 1))
        whole = story(chat, screen)
        assert all(turn.typed in whole and turn.told in whole for turn in chat.turns)
