"""The demo corpus: simple children's stories, written and read by the grammar in demo_grammar.toml.

Every line of the grammar compiles to a sequence of parts. `_write` walks the parts, draws what is open and gives text;
`_read` walks the same parts along a text and keeps every reading that is still possible. So the parser knows exactly
the stories that the writer can tell, agreement included: once named, a hero keeps name and pronouns, a toy its colour.
"""

import functools
import random
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TypeVar

Record = Mapping[str, str]  # fields of a character, place or thing: {"name": "Mia", "they": "she", "They": "She", ...}
Bound = dict[str, Record]  # cast -> the record that this story has drawn
Reading = tuple[int, Bound]  # how far the text is read, and what is bound by then


@dataclass(frozen=True)
class Slot:
    """A field of a cast's record: {hero.name}. Where a cast has one field, its name is empty: {look}."""

    cast: str
    field: str


@dataclass(frozen=True)
class Choice:
    """One of several sequences of parts."""

    options: tuple["Parts", ...]


@dataclass(frozen=True)
class Article:
    """a(n): "an" before a vowel, "a" otherwise."""


T = TypeVar("T")
Part = str | Slot | Choice | Article
Parts = tuple[Part, ...]

_MARKUP = re.compile(r"<(?P<rule>\w+)>|\{(?P<slot>[\w.]+)\}|\[(?P<choice>[^]]*)\]|(?P<article>a\(n\))")
_ARTICLE = re.compile(r"an(?= [aeiou])|a(?= [^aeiou])")


@dataclass(frozen=True)
class Grammar:
    """What a story can be about, and the shapes it can have."""

    casts: Mapping[str, Sequence[Record]]
    shapes: Sequence[Parts]


def stories(count: int, seed: int = 0) -> Iterator[str]:
    """`count` different stories, the same for a seed everywhere and for ever; fewer are a prefix of more."""
    grammar, rng = _grammar(), random.Random(seed)
    told: set[str] = set()
    while len(told) < count:
        bound: Bound = {}
        draft = _write(_pick(grammar.shapes, rng), grammar, rng, bound)
        story = re.sub(r"\ba\(n\)(?= [aeiou])", "an", draft).replace("a(n)", "a")
        if story not in told:
            told.add(story)
            yield story


def split(train_count: int = 20_000, validation_count: int = 1_000, seed: int = 0) -> tuple[list[str], list[str]]:
    """Training and held-out stories: all different, so no held-out story occurs in training."""
    told = list(stories(train_count + validation_count, seed))
    return told[:train_count], told[train_count:]


def parses(text: str) -> bool:
    """Whether `text` is one complete story of the grammar, agreement included. White space around it does not count."""
    text, grammar = text.strip(), _grammar()
    return any(end == len(text) for shape in grammar.shapes for end, _ in _read(shape, text, [(0, {})], grammar))


def _write(parts: Parts, grammar: Grammar, rng: random.Random, bound: Bound) -> str:
    text = ""
    for part in parts:
        match part:
            case str():
                text += part
            case Article():
                text += "a(n)"  # settled when the next word is known
            case Slot(cast, field):
                if cast not in bound:
                    bound[cast] = _pick(grammar.casts[cast], rng)
                text += bound[cast][field]
            case Choice(options):
                text += _write(_pick(options, rng), grammar, rng, bound)
    return text


def _read(parts: Parts, text: str, readings: list[Reading], grammar: Grammar) -> list[Reading]:
    for part in parts:
        match part:
            case str():
                readings = [(at + len(part), bound) for at, bound in readings if text.startswith(part, at)]
            case Article():
                readings = [(found.end(), bound) for at, bound in readings if (found := _ARTICLE.match(text, at))]
            case Slot(cast, field):
                readings = [
                    (at + len(record[field]), {**bound, cast: record})
                    for at, bound in readings
                    for record in ([bound[cast]] if cast in bound else grammar.casts[cast])
                    if text.startswith(record[field], at)
                ]
            case Choice(options):
                readings = [end for option in options for end in _read(option, text, readings, grammar)]
        if not readings:
            break
    return readings


def _pick(options: Sequence[T], rng: random.Random) -> T:
    """Of the generator's methods only random() is promised never to change between versions of Python."""
    return options[int(rng.random() * len(options))]


@functools.cache
def _grammar() -> Grammar:
    source = tomllib.loads(resources.files(__package__).joinpath("demo_grammar.toml").read_text(encoding="utf-8"))
    casts = {name: _records(table, source["pronouns"]) for name, table in source["cast"].items()}
    return Grammar(casts, tuple(_shape(shape, source["rules"]) for shape in source["shape"].values()))


def _records(table: str, pronouns: Mapping[str, Record]) -> list[Record]:
    rows = [[value.strip() for value in row.split(",")] for row in table.split(";")]
    fields = rows.pop(0) if len(rows[0]) > 1 else [""]
    records: list[Record] = []
    for row in rows:
        named = dict(zip(fields, row, strict=True))
        record = {**named, **pronouns.get(named.get("they", ""), {})}
        records.append(record | {key.capitalize(): value.capitalize() for key, value in record.items() if key})
    return records


def _shape(shape: Mapping[str, str], shared: Mapping[str, str]) -> Parts:
    """The sentences of a shape as parts, with a space between them."""
    rules = {**shared, **shape}
    parts: list[Part] = []
    for name in shape["story"].split():
        sentence = (" " if parts else "", _rule(name.rstrip("?"), rules))
        parts += [Choice((sentence, ()))] if name.endswith("?") else sentence
    return tuple(parts)


def _rule(name: str, rules: Mapping[str, str]) -> Choice:
    return Choice(tuple(_parts(line, rules) for line in rules[name].strip().splitlines()))


def _parts(line: str, rules: Mapping[str, str]) -> Parts:
    parts: list[Part] = []
    at = 0
    for markup in _MARKUP.finditer(line):
        parts.append(line[at : markup.start()])
        at = markup.end()
        match markup.lastgroup, markup[markup.lastgroup or 0]:
            case "rule", name:
                parts.append(_rule(name, rules))
            case "slot", path:
                cast, _, field = path.partition(".")
                parts.append(Slot(cast, field))
            case "choice", options:
                parts.append(Choice(tuple(_parts(option, rules) for option in options.split("|"))))
            case _:
                parts.append(Article())
    parts.append(line[at:])
    return tuple(part for part in parts if part != "")
