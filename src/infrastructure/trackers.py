"""Where events go: metrics.jsonl always; TensorBoard, trackio and wandb when asked for."""

import json
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

from smallgpt.domain.errors import ConfigError


class JsonLines:
    """Appends each event to metrics.jsonl, flushed, so that a reader follows the run; JSON has no nan, so it becomes null."""

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        """`check` is called before each event, and raises where nothing may be written any more."""
        self.file, self.check = path.open("a", encoding="utf-8"), check

    def log(self, event: dict[str, Any]) -> None:
        self.check()
        finite = {
            key: None if isinstance(value, float) and not isfinite(value) else value for key, value in event.items()
        }
        self.file.write(json.dumps(finite) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class Several:
    """Hands each event to every tracker."""

    def __init__(self, trackers: list[Any]) -> None:
        self.trackers = trackers

    def log(self, event: dict[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.log(event)

    def close(self) -> None:
        for tracker in self.trackers:
            if hasattr(tracker, "close"):
                tracker.close()


class Scalars:
    """Sends an event's numbers, named EVENT/KEY, to a function taking (numbers, step)."""

    def __init__(self, send: Callable[[dict[str, float], int], Any], close: Callable[[], Any]) -> None:
        self.send, self.close = send, close

    def log(self, event: dict[str, Any]) -> None:
        if event["event"] not in ("train", "validation"):
            return
        numbers = {
            f"{event['event']}/{key}": float(value)
            for key, value in event.items()
            if key not in ("event", "step") and isinstance(value, int | float) and not isinstance(value, bool)
        }
        self.send(numbers, event["step"])


def open_tracker(name: str, run: Path, config: dict[str, Any]) -> Scalars:
    """An external tracker by name. Raises ConfigError when it is unknown, not installed, or does not start."""
    openers = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}
    if name not in openers:
        raise ConfigError(f"unknown tracker {name!r}; use {', '.join(openers)}")
    try:
        return openers[name](run, config)
    except ImportError:
        raise ConfigError(f"--track {name} needs a package: pip install 'smallgpt[track]'") from None
    except Exception as error:  # of the trackers' own kinds: no key, no network, no disk
        words = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"--track {name} cannot start: {words}\nmend that, or leave --track {name} out") from error


def _tensorboard(run: Path, config: dict[str, Any]) -> Scalars:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(run / "tensorboard")
    writer.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```")

    def send(numbers: dict[str, float], step: int) -> None:
        for key, value in numbers.items():
            writer.add_scalar(key, value, step)

    return Scalars(send, writer.close)


def _trackio(run: Path, config: dict[str, Any]) -> Scalars:
    import trackio

    session = trackio.init(project="smallgpt", name=run.name, config=config, embed=False)
    return Scalars(lambda numbers, step: session.log(numbers, step=step), session.finish)


def _wandb(run: Path, config: dict[str, Any]) -> Scalars:
    import wandb

    run.mkdir(parents=True, exist_ok=True)
    session = wandb.init(project="smallgpt", name=run.name, config=config, dir=str(run))
    return Scalars(lambda numbers, step: session.log(numbers, step=step), session.finish)
