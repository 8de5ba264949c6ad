"""The demo corpus: what it promises a training run, and that its parser tells stories from near misses."""

import hashlib
import random
import re
import tomllib
from collections.abc import Callable
from importlib import resources

import pytest

from smallgpt.infrastructure.corpora import demo

GRAMMAR = tomllib.loads(
    resources.files("smallgpt.infrastructure.corpora").joinpath("demo_grammar.toml").read_text(encoding="utf-8")
)
SENTENCE = re.compile(r'.+?[.!?]"?(?=\s|$)')
PRONOUN = {"he": "she", "she": "he", "his": "her", "her": "his", "him": "her", "He": "She", "She": "He", "Her": "His"}
PRONOUN |= {"His": "Her", "himself": "herself", "herself": "himself"}


@pytest.fixture(scope="module")
def splits() -> tuple[list[str], list[str]]:
    return demo.split()


def test_the_same_seed_tells_the_same_stories_on_every_machine() -> None:
    text = "\n".join(demo.stories(50))
    assert text == "\n".join(demo.stories(50))
    assert text.startswith("\n".join(demo.stories(10)))
    assert text != "\n".join(demo.stories(50, seed=1))
    # Recorded; changes with the grammar, and with nothing else.
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "25c9cd988f8810f5"


def test_all_stories_differ_so_that_held_out_ones_are_new(splits: tuple[list[str], list[str]]) -> None:
    train, validation = splits
    assert (len(train), len(validation)) == (20_000, 1_000)
    assert len({*train, *validation}) == 21_000


def test_the_training_stories_have_the_promised_words_and_size(splits: tuple[list[str], list[str]]) -> None:
    train, _ = splits
    vocabulary = {word for story in train for word in re.findall(r"[a-z]+", story.lower())}
    assert len(vocabulary) >= 1_000
    assert 6e6 < sum(len(story.encode()) for story in train) < 14e6
    assert all(60 <= len(story.split()) <= 160 for story in train)


def test_the_stories_are_clean_english_text(splits: tuple[list[str], list[str]]) -> None:
    text = "\n\n".join(splits[0])
    assert not re.search(r"[^A-Za-z .,:!?'\"\n-]|  | \n|\(n\)", text), "left-over markup or stray spaces"
    assert not re.search(r"\b(a [aeiou]|an [^aeiou])", text)
    assert not re.search(r"\ban? (uni|us[aeiu]|uk|eu|one\b|once|ho(nest|ur|nor))", text), "spelling misleads a(n) here"
    assert all(story.count('"') % 2 == 0 and re.search(r'[.!]"?$', story) for story in splits[0])


def test_every_story_parses(splits: tuple[list[str], list[str]]) -> None:
    train, validation = splits
    assert [story for story in train[:1_000] + validation if not demo.parses(story)] == []


def replace_one(pattern: str, replacement: str | Callable[[re.Match[str]], str], story: str, rng: random.Random) -> str:
    """`story` with one of the pattern's matches replaced; "" where it has none."""
    matches = list(re.finditer(pattern, story))
    if not matches:
        return ""
    found = rng.choice(matches)
    new = replacement if isinstance(replacement, str) else replacement(found)
    return story[: found.start()] + new + story[found.end() :]


def another_of(cast: str, story: str, rng: random.Random) -> str:
    """One mention of the story's hero, friend, toy, ... becomes another of its kind."""
    values = [re.split("[,;]", record.strip())[0] for record in GRAMMAR["cast"][cast].split(";")]
    mentioned = [value for value in values if len(re.findall(rf"\b{value}\b", story)) > 1]
    if not mentioned:
        return ""
    old = max(mentioned, key=len)
    return replace_one(rf"\b{old}\b", rng.choice([value for value in values if value != old]), story, rng)


def change_a_pronoun(story: str, rng: random.Random) -> str:
    return replace_one(rf"\b({'|'.join(PRONOUN)})\b", lambda found: PRONOUN[found[0]], story, rng)


def change_an_article(story: str, rng: random.Random) -> str:
    return replace_one(r"\ban?(?= )", lambda found: "an" if found[0] == "a" else "a", story, rng)


def swap_two_sentences(story: str, rng: random.Random) -> str:
    first, second = sorted(rng.sample(list(SENTENCE.finditer(story)), 2), key=lambda found: found.start())
    between = story[first.end() : second.start()]
    return story[: first.start()] + second[0] + between + first[0] + story[second.end() :]


def drop_a_word(story: str, rng: random.Random) -> str:
    return replace_one(r"(?<= )(the|and|to|was|it) ", "", story, rng)


def drop_the_ending(story: str, rng: random.Random) -> str:
    """Without its last two or three sentences (the very last may be an optional one)."""
    return story[: list(SENTENCE.finditer(story))[-rng.choice([2, 3])].start()].rstrip()


def cut_short(story: str, rng: random.Random) -> str:
    return story[: rng.choice([found.end() for found in re.finditer(r"[a-z,](?= )", story)])]


def begin_late(story: str, rng: random.Random) -> str:
    return story[rng.choice([found.end() for found in re.finditer(r"\s", story)]) :]


@pytest.mark.parametrize(
    "spoil",
    [
        change_a_pronoun,
        change_an_article,
        swap_two_sentences,
        drop_a_word,
        drop_the_ending,
        cut_short,
        begin_late,
        *(
            pytest.param(lambda story, rng, cast=cast: another_of(cast, story, rng), id=f"another {cast}")
            for cast in ("hero", "helper", "friend", "toy", "flyer", "pet", "ingredient", "goal", "dare")
        ),
    ],
)
def test_a_spoilt_story_does_not_parse(spoil: Callable[[str, random.Random], str]) -> None:
    rng = random.Random(3)
    spoilt = [spoil(story, rng) for story in demo.stories(200, seed=3)]
    told = [text for text in spoilt if text]
    assert len(told) >= 10, "hardly anything was tried"
    assert [text for text in told if demo.parses(text)] == []


def test_only_one_whole_story_parses() -> None:
    first, second = demo.stories(2)
    assert demo.parses(f"\n{first} \n")
    assert not demo.parses(f"{first}\n\n{second}")
    assert not demo.parses(first.lower())
    assert not demo.parses(first.replace(". ", ".\n\n"))
    assert not demo.parses("")
    assert not demo.parses("Once upon a time, there was a model.")


def test_every_rule_and_cast_is_used_and_none_hides_another() -> None:
    shared, casts = GRAMMAR["rules"], GRAMMAR["cast"]
    named, drawn = set(), set()
    for name, shape in GRAMMAR["shape"].items():
        own = {rule: lines for rule, lines in shape.items() if rule != "story"}
        assert not own.keys() & shared.keys(), f"shape {name} hides a shared rule"
        steps = {step.rstrip("?") for step in shape["story"].split()}
        used = steps | set(re.findall(r"<(\w+)>", "".join(own.values())))
        assert own.keys() <= used, f"shape {name} has rules that nothing names"
        named |= used
        drawn |= set(re.findall(r"\{(\w+)", "".join(own.values())))
    named |= set(re.findall(r"<(\w+)>", "".join(shared.values())))
    drawn |= set(re.findall(r"\{(\w+)", "".join(shared.values())))
    assert shared.keys() <= named
    assert casts.keys() == drawn


def test_no_two_people_share_a_name() -> None:
    names = [
        name for cast in ("hero", "helper", "friend") for name in re.findall(r"([A-Z]\w+),", GRAMMAR["cast"][cast])
    ]
    assert len(names) == len(set(names)) > 50
