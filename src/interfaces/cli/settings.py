"""The settings of a run: preset < --config FILE < flags, merged before anything is checked.

Only the result has to fit together: `--model.n-head 6` is held against the preset's width, not against a default.
"""

import inspect
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from cyclopts import Group, Parameter
from pydantic import BaseModel, ValidationError

from smallgpt.domain.config import RunConfig, WeightedFolder
from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.interfaces.cli.errors import did_you_mean

Command = TypeVar("Command", bound=Callable[..., Any])

METAVARS: dict[object, str] = {int: "INT", float: "FLOAT", Path: "PATH", str: "TEXT"}
METAVARS[tuple[WeightedFolder, ...]] = "FOLDER=WEIGHT,..."
METAVARS[tuple[str, ...]] = "NAME,..."

# Length and data of a run are each given in one of two ways; the layer that names one replaces the other of a layer below.
RIVALS = {
    ("training", "max_steps"): "max_minutes",
    ("training", "max_minutes"): "max_steps",
    ("data", "path"): "mixture",
    ("data", "mixture"): "path",
}


@dataclass(frozen=True)
class Layer:
    """Values of one source, {section: {field: value}}; later layers win."""

    source: str
    """Where they stand, for error messages: a file, a preset, or "" for flags, which the user has just typed."""
    values: dict[str, Any]


def resolve(*layers: Layer) -> RunConfig:
    """Merge the layers and check the whole. Fields that no layer names stay unset (`model_fields_set`).

    Raises ConfigError with a line for each mistake.
    """
    merged: dict[str, Any] = {}
    sources: dict[tuple[str, ...], str] = {}
    for layer in layers:
        for section, fields in layer.values.items():
            sources[(section,)] = layer.source
            if section not in RunConfig.model_fields:  # refused below, with all other mistakes
                merged[section] = fields
                continue
            if not isinstance(fields, dict):
                raise ConfigError(f"{section} in {layer.source} must be a table: [{section}], then NAME = VALUE")
            merged.setdefault(section, {})
            for field, value in fields.items():
                rival = RIVALS.get((section, field))
                if rival is not None and rival not in fields:
                    merged[section].pop(rival, None)
                merged[section][field] = value
                sources[section, field] = layer.source
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("\n".join(mistakes(error, sources))) from error


def mistakes(error: ValidationError, sources: dict[tuple[str, ...], str] | None = None) -> list[str]:
    """A line for each mistake: setting, what is wrong, the value, and the file that it stands in."""
    lines: list[str] = []
    alternatives: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        name = ".".join(str(part) for part in detail["loc"][:2])  # beyond, pydantic names the branches of a union
        source = (sources or {}).get(tuple(str(part) for part in detail["loc"][:2]), "")
        where = f" in {source}" if source else ""
        if detail["type"] == "extra_forbidden":
            lines.append(f"unknown setting {name}{where}{_hint(name)}")
        elif detail["type"] == "value_error":  # our own words, which name the values
            lines.append(": ".join(part for part in (name, str(detail["ctx"]["error"])) if part))
        else:
            # pydantic: "Input should be a valid integer, unable to parse string as an integer"
            words = re.split(r", (?:unable to parse|got a number)", detail["msg"])[0].replace("Input should", "must")
            before = alternatives.get(name)
            if before is not None:
                lines.pop()
                words = f"{before}, or {words.removeprefix('must be ')}"
            alternatives[name] = words
            lines.append(f"{name}: {words} (got {detail['input']!r}){where}")
    return lines


def preset_names() -> list[str]:
    """The presets that come with the package."""
    folder = resources.files("smallgpt.interfaces.cli.presets")
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def preset_layer(name: str) -> Layer:
    """The values of a shipped preset. Raises ConfigError for a name that there is not."""
    names = preset_names()
    if name not in names:
        hint = did_you_mean(name, names)
        file = f"\na file goes with --config {name}" if name.endswith(".toml") else ""
        raise ConfigError(f"no preset {name!r}{hint}\npresets: {', '.join(names)}{file}")
    text = (resources.files("smallgpt.interfaces.cli.presets") / f"{name}.toml").read_text("utf-8")
    return Layer(f"preset {name}", tomllib.loads(text))


def file_layer(path: Path) -> Layer:
    """The values of a TOML file. Raises ConfigError when it cannot be read."""
    try:
        return toml_layer(str(path), path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this configuration: {error.strerror}") from None


def toml_layer(source: str, content: bytes) -> Layer:
    """The values of a TOML file's content. Raises ConfigError when it is none."""
    try:
        return Layer(source, tomllib.loads(content.decode("utf-8-sig")))
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: not a TOML file: it is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: broken TOML: {error}") from None


def run_layer(run: Path | str) -> Layer:
    """The values a run was started with. Raises CheckpointError when the folder, or what is at the URL, is no run."""
    if isinstance(run, str):
        return _stored_run_layer(run)
    if not (run / "config.toml").is_file():
        raise CheckpointError(
            f"{run}: not a run folder: it has no config.toml\n--resume takes a folder that `smallgpt train` made"
        )
    return file_layer(run / "config.toml")


def _stored_run_layer(url: str) -> Layer:
    """The same of a run in a store. Where it is its own mirror, it stays that, by the URL that was given now."""
    from smallgpt.infrastructure.object_store import Store

    store = Store(url, CheckpointError)
    content = store.read("config.toml")
    if content is None:
        raise CheckpointError(
            f"{store.url}: no run there: it has no config.toml; check the bucket and the folder\n"
            "--resume takes the URL that a run had as --checkpoint.mirror"
        )
    layer = toml_layer(f"{store.url}/config.toml", content)
    kept = layer.values.get("checkpoint")
    if isinstance(kept, dict) and str(kept.get("mirror")).rstrip("/") == store.url:
        kept["mirror"] = url
    return layer


def flag_layer(flags: dict[str, Any]) -> Layer:
    """The values given as flags: what a command under `with_setting_flags` receives as **flags."""
    values: dict[str, Any] = {}
    for name, value in flags.items():
        section, _, field = name.partition("__")
        values.setdefault(section, {})[field] = value
    return Layer("", values)


def with_setting_flags(command: Command) -> Command:
    """Give a command that takes **flags one flag for each setting of RunConfig, as --section.field.

    Only flags that were typed arrive. Numbers arrive as text, so that a flag and a file are checked by the same rules.
    """
    own = inspect.signature(command)
    plain = [parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    setattr(command, "__signature__", own.replace(parameters=[*plain, *_flags()]))  # noqa: B010  # mypy knows no such attribute
    return command


def _flags() -> Iterator[inspect.Parameter]:
    for order, (section, model) in enumerate(_sections()):
        group = Group(section.capitalize(), help=(model.__doc__ or "").split("\n")[0], sort_key=100 + order)
        for name, field in model.model_fields.items():
            kind = _bare(field.annotation)
            as_written = get_origin(kind) is not Literal and kind is not bool
            parameter = Parameter(
                name=f"--{section}.{name.replace('_', '-')}",
                help=field.description,
                group=group,
                metavar=METAVARS.get(kind),
                show_default=False if field.default in (None, ()) else _words(field.default),
            )
            yield inspect.Parameter(
                f"{section}__{name}",
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[str if as_written else kind, parameter] | None,
            )


def _words(default: object) -> str:
    """A default as a flag would give it."""
    return ",".join(default) if isinstance(default, tuple) else str(default)


def _bare(annotation: object) -> object:
    """int of `Annotated[int, ...] | None`; a Literal stays whole."""
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return _bare(get_args(annotation)[0])
    return annotation


def _sections() -> Iterator[tuple[str, type[BaseModel]]]:
    for section, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield section, field.annotation


def _hint(name: str) -> str:
    """What may have been meant by an unknown name: a setting of another section, or one spelt alike."""
    sections = {section: list(model.model_fields) for section, model in _sections()}
    section, _, field = name.rpartition(".")
    homes = [f"{home}.{field}" for home, fields in sections.items() if field in fields]
    if homes:
        return f"; did you mean {' or '.join(homes)}?"
    if section in sections:
        return did_you_mean(field, sections[section], prefix=f"{section}.")
    return did_you_mean(name, [*sections, *(f"{home}.{field}" for home in sections for field in sections[home])])
