"""Settings from presets, files and flags: who wins, when they are checked, and what a mistake reads like."""

import inspect
from pathlib import Path

import pytest
import tomli_w

from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.interfaces.cli import settings
from smallgpt.interfaces.cli.settings import Layer, resolve


def toml(folder: Path, text: str) -> Path:
    path = folder / "my.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_later_layers_win_field_by_field() -> None:
    config = resolve(
        Layer("preset", {"model": {"n_layer": 2, "n_head": 2, "n_embd": 64}, "training": {"seed": 1}}),
        Layer("file", {"model": {"n_layer": 3}}),
        Layer("", {"model": {"n_layer": "5"}}),
    )
    assert (config.model.n_layer, config.model.n_head, config.training.seed) == (5, 2, 1)


def test_only_the_merged_result_has_to_fit_together() -> None:
    # six heads do not divide the default width of 256, nor 96 the preset's 5 heads
    config = resolve(
        Layer("preset", {"model": {"n_head": 5, "n_embd": 320}}), Layer("", {"model": {"n_head": "6", "n_embd": "96"}})
    )
    assert (config.model.n_head, config.model.n_embd) == (6, 96)


def test_settings_that_nobody_named_stay_unset() -> None:
    config = resolve(Layer("preset", {"model": {"n_layer": 2}}), Layer("", {"training": {"seed": "3"}}))
    assert config.model.model_fields_set == {"n_layer"}
    assert config.training.model_fields_set == {"seed"}


@pytest.mark.parametrize(
    ("below", "above", "steps", "minutes"),
    [
        ({"max_minutes": 3}, {"max_steps": "100"}, 100, None),
        ({"max_steps": 100}, {"max_minutes": "0.5"}, None, 0.5),
        ({"max_steps": 100}, {"seed": "1"}, 100, None),
    ],
)
def test_naming_one_kind_of_length_replaces_the_other_of_a_lower_layer(
    below: dict[str, object], above: dict[str, object], steps: int | None, minutes: float | None
) -> None:
    config = resolve(Layer("preset demo", {"training": below}), Layer("", {"training": above}))
    assert (config.training.max_steps, config.training.max_minutes) == (steps, minutes)


def test_naming_both_kinds_of_length_at_once_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training: max_steps \(9\) and max_minutes \(2\) exclude each other"):
        resolve(Layer("", {"training": {"max_steps": "9", "max_minutes": "2"}}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nn_heads = 3", "unknown setting model.n_heads in {file}; did you mean model.n_head?"),
        ("[modle]\nn_head = 3", "unknown setting modle in {file}; did you mean model?"),
        ("learning_rate = 1", "unknown setting learning_rate in {file}; did you mean optimizer.learning_rate?"),
        (
            "[optimizer]\nmax_steps = 1",
            "unknown setting optimizer.max_steps in {file}; did you mean training.max_steps?",
        ),
        ("[model]\nzzz = 3", "unknown setting model.zzz in {file}"),
        ("[model]\nn_head = 'five'", "model.n_head: must be a valid integer (got 'five') in {file}"),
        ("[model]\nn_head = 2.5", "model.n_head: must be a valid integer (got 2.5) in {file}"),
        ("[model]\nn_layer = 0", "model.n_layer: must be greater than or equal to 1 (got 0) in {file}"),
        ("[optimizer]\nname = 'adam'", "optimizer.name: must be 'adamw' or 'muon' (got 'adam') in {file}"),
        (
            "[training]\nmicro_batch = 'all'",
            "training.micro_batch: must be a valid integer, or 'auto' (got 'all') in {file}",
        ),
        ("[model]\nn_head = 3", "model: n_embd (256) must be a multiple of n_head (3)"),
        ("model = 3", "model in {file} must be a table: [model], then NAME = VALUE"),
    ],
)
def test_a_mistake_in_a_file_names_setting_value_and_file(tmp_path: Path, text: str, message: str) -> None:
    file = toml(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        resolve(settings.file_layer(file))
    assert str(raised.value) == message.format(file=file)


def test_every_mistake_has_its_line() -> None:
    with pytest.raises(ConfigError) as raised:
        resolve(Layer("", {"model": {"n_head": "x", "n_layer": "0"}, "training": {"seed": "-1"}}))
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == [
        "model.n_layer",
        "model.n_head",
        "training.seed",
    ]


def test_broken_missing_and_binary_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"my\.toml: broken TOML: .*line 2"):
        settings.file_layer(toml(tmp_path, "[model]\nn_head = \n"))
    with pytest.raises(ConfigError, match=r"nope\.toml: cannot read this configuration: No such file"):
        settings.file_layer(tmp_path / "nope.toml")
    with pytest.raises(ConfigError, match="cannot read this configuration: Is a directory"):
        settings.file_layer(tmp_path)
    (tmp_path / "my.toml").write_bytes(b"\xff\xfe[")
    with pytest.raises(ConfigError, match="not UTF-8"):
        settings.file_layer(tmp_path / "my.toml")


def test_a_file_may_have_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_bytes(b"\xef\xbb\xbf[model]\r\nn_layer = 3\r\n")
    assert settings.file_layer(tmp_path / "my.toml").values == {"model": {"n_layer": 3}}


@pytest.mark.parametrize("name", settings.preset_names())
def test_every_preset_is_valid_and_says_how_long_it_trains(name: str) -> None:
    layer = settings.preset_layer(name)
    config = resolve(layer)
    assert config.model_dump(include={*layer.values}, exclude_unset=True) == layer.values
    assert config.training.max_steps is not None or config.training.max_minutes is not None


def test_the_documented_presets_are_shipped() -> None:
    assert settings.preset_names() == ["demo", "gpt2-124m", "seed", "tinystories", "tinystories-cpu"]


def test_an_unknown_preset_is_met_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="no preset 'demmo'; did you mean demo"):
        settings.preset_layer("demmo")
    with pytest.raises(ConfigError, match=r"a file goes with --config my\.toml"):
        settings.preset_layer("my.toml")


def test_a_run_gives_its_own_settings(tmp_path: Path) -> None:
    saved = resolve(Layer("", {"model": {"n_layer": "3"}}))
    (tmp_path / "config.toml").write_text(tomli_w.dumps(saved.model_dump(mode="json", exclude_none=True)))
    assert resolve(settings.run_layer(tmp_path), Layer("", {"training": {"seed": "7"}})) == saved.model_copy(
        update={"training": saved.training.model_copy(update={"seed": 7})}
    )
    with pytest.raises(CheckpointError, match=r"not a run folder: it has no config\.toml"):
        settings.run_layer(tmp_path / "other")


def test_every_setting_is_a_flag_with_its_help_and_default() -> None:
    @settings.with_setting_flags
    def command(name: str, **flags: object) -> None: ...

    parameters = inspect.signature(command).parameters
    wanted = {f"{section}__{field}" for section, fields in RunConfig().model_dump().items() for field in fields}
    assert set(parameters) == wanted | {"name"}
    flag = parameters["optimizer__learning_rate"].annotation.__args__[0].__metadata__[0]
    assert (flag.name, flag.help, flag.show_default) == (
        ("--optimizer.learning-rate",),
        "Peak rate of AdamW.",
        "0.001",
    )
    assert settings.flag_layer({"optimizer__learning_rate": "1e-3", "data__path": Path("x")}).values == {
        "optimizer": {"learning_rate": "1e-3"},
        "data": {"path": Path("x")},
    }
