"""`smallgpt serve`: a model behind OpenAI's API, and a page to write with it."""

import os
import sys
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from smallgpt.domain.errors import CheckpointError, ConfigError, HardwareError
from smallgpt.interfaces.cli.flags import PlaceOf, Switch, Whole

if TYPE_CHECKING:
    from smallgpt.interfaces.http.guard import Access
    from smallgpt.interfaces.opening import OpenedModel

KEY_VARIABLE = "SMALLGPT_API_KEY"
Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="", show_default=False)]


def serve(
    run: PlaceOf,
    /,
    *,
    host: str = "127.0.0.1",
    port: Whole = 8000,
    streams: Whole = 16,
    queue: Whole = 64,
    max_new_tokens: Whole = 2048,
    timeout: float = 120.0,
    grace: float = 10.0,
    api_key_env: str | None = None,
    allow_host: Names = (),
    allow_origin: Names = (),
    past_block: Literal["slide", "refill"] = "slide",
    weights: Literal["float32", "bfloat16", "int8"] = "float32",
    device: str = "auto",
    quiet: Switch = False,
) -> None:
    """Serve a model: OpenAI's completions API, and a page at /.

    Only this machine can reach it, unless --host names another address.
    For that an API key is needed, in the environment: SMALLGPT_API_KEY.
    Ctrl-C lets the texts end that are being written; a second one does not.

    Try:
      smallgpt serve runs/demo
      smallgpt serve runs/demo --port 0 --streams 4 --weights int8
      smallgpt serve runs/demo --host 0.0.0.0 --api-key-env STORY_KEY

    Args:
        run: Run, checkpoint or exported folder; a run or checkpoint also by its URL.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one and prints it.
        streams: Texts continued at once; they share each reading of the weights.
        queue: Texts that may wait for that; the next client is told when to try again.
        max_new_tokens: Longest continuation that a client may ask for.
        timeout: Seconds for a request, waiting included; what is written by then is sent.
        grace: Seconds for what is being written when the server is told to stop.
        api_key_env: Variable with the API key, or several, separated by commas; otherwise SMALLGPT_API_KEY.
        allow_host: More names under which clients may call it, such as a proxy's; that needs an API key too.
        allow_origin: Other sites whose pages may call it, such as https://example.org.
        past_block: Beyond the block: slide is exact, refill faster.
        weights: float32, bfloat16 or int8.
        device: auto, cpu, cuda or cuda:N.
        quiet: No line for each request.
    """
    _need_packages()
    access = _access(host, api_key_env, allow_host, allow_origin)
    from smallgpt.application.engine import Engine
    from smallgpt.interfaces.cli.progress import model_fetched
    from smallgpt.interfaces.http.app import make_app
    from smallgpt.interfaces.http.limits import Limits
    from smallgpt.interfaces.http.metrics import Metrics
    from smallgpt.interfaces.http.planning import Served
    from smallgpt.interfaces.http.running import Running, address_of, listen
    from smallgpt.interfaces.http.worker import Worker
    from smallgpt.interfaces.packed_weights import open_for_generation

    limits = Limits(streams, queue, max_new_tokens, timeout, grace)
    with listen(host, port) as listener:
        opened = open_for_generation(
            model_fetched(run), device, None, weights, lambda words: print(words, file=sys.stderr)
        )
        if opened.tokenizer is None:
            raise CheckpointError(f"{opened.path} has no tokenizer.json, so text cannot be turned into its tokens")
        served = Served(_name(opened), opened.tokenizer, opened.model.config.block_size)
        metrics = Metrics()
        worker = Worker(lambda: Engine(opened.model, streams, past_block=past_block), limits, metrics)
        app = make_app(served, worker, limits, metrics, access, log=not quiet)
        words = f"serving {served.name} at {address_of(listener)} (Ctrl-C ends it)"
        running = Running(app, worker, limits, lambda: print(words, flush=True))
        running.run(sockets=[listener])
    if worker.death is not None:
        raise HardwareError(
            f"{worker.death}\nStart the server again; fewer --streams or --weights int8 need less memory."
        )
    if not running.started:
        raise ConfigError("the server could not start")


def _need_packages() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve needs {error.name}, which is not here: pip install 'smallgpt[serve]'") from None


def _name(opened: "OpenedModel") -> str:
    """What clients call it: the run's name, else the folder's."""
    return (opened.run.path if opened.run is not None else opened.path).resolve().name


def _access(host: str, variable: str | None, hosts: tuple[str, ...], origins: tuple[str, ...]) -> "Access":
    from smallgpt.interfaces.http.guard import Access

    name = variable or KEY_VARIABLE
    keys = [key.strip() for key in os.environ.get(name, "").split(",") if key.strip()]
    if variable and not keys:
        raise ConfigError(f"the variable {name} is empty or not set; put the API key in it: export {name}=...")
    if not _is_loopback(host) and not keys:
        raise ConfigError(
            f"host {host} can be reached from other machines, which needs an API key\n"
            f"Put one into the environment, export {name}=..., or leave --host out."
        )
    public = next((name for name in hosts if not _is_loopback(name.strip("[]"))), None)
    if public is not None and not keys:
        raise ConfigError(
            f"allow-host {public} lets others reach the model through a proxy, which needs an API key\n"
            f"Put one into the environment, export {name}=..., or leave --allow-host out."
        )
    for origin in origins:
        scheme, _, rest = origin.partition("://")
        if scheme not in ("http", "https") or not rest or "/" in rest:
            raise ConfigError(f"allow-origin is {origin!r}; give scheme and host, such as https://example.org")
    named = f"[{host}]" if ":" in host else host
    return Access(
        (named.lower(), *(name.lower() for name in hosts)),
        tuple(origin.lower() for origin in origins),
        tuple(os.fsencode(key) for key in keys),
    )


def _is_loopback(host: str) -> bool:
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
