"""`python -m service`: one service process, from settings to a clean end."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, cast

import uvicorn
import uvloop

from everlens import __version__, logs, tracing
from everlens.errors import EverlensError, SettingsError
from everlens.keys import read_ring
from everlens.launch.environment import WAITING
from everlens.settings import Settings, load_settings
from service.connections import KEEP_ALIVE_S, Connection, Owing

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from everlens.model.backbone import Backbone
    from service.context import Service
    from service.metrics import Metrics

_GRACE_S = 2
_EXIT_REFUSED = 2

log = logging.getLogger("service")


def main() -> int:
    """Serve until SIGINT or SIGTERM; return the exit status."""
    os.environ.update(WAITING | dict(os.environ))  # read when torch is loaded
    logs.begin()
    try:
        settings = load_settings()
        logs.begin(settings.log_format, settings.log_level)
        check_address(settings)
        end_tracing = tracing.begin(settings.otlp_endpoint, "everlens-service", __version__)
        try:
            failure = _run(settings)
        finally:
            end_tracing()
    except EverlensError as error:
        failure = error
    if failure is None:
        return 0
    log.critical("%s", failure)
    return _EXIT_REFUSED


def check_address(settings: Settings) -> None:
    """
    Return when the settings name a log, proxies by address, and a safe address to listen on.

    Raises:
        SettingsError: they do not.
        KeysError: the file of API keys is not as it must be.
    """
    if not settings.redis_url:
        raise SettingsError(
            "EVERLENS_REDIS_URL is empty; `everlens up` starts a server and sets it, "
            "or name a running Redis or Valkey"
        )
    for proxy in filter(None, settings.trusted_proxies.split(",")):
        try:
            ipaddress.ip_network(proxy.strip())
        except ValueError as error:  # uvicorn would take it for a name that nobody has
            raise SettingsError(
                f"EVERLENS_TRUSTED_PROXIES: {error}; give addresses or networks with commas "
                "between, such as 127.0.0.1,172.16.0.0/12"
            ) from error
    keys = read_ring(settings.keys_path)
    if settings.keys_file and not keys:
        raise SettingsError(
            f"EVERLENS_KEYS_FILE={settings.keys_file} has no API key; make one with "
            "`everlens keys add NAME`"
        )
    try:
        loopback = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = settings.host == "localhost"
    if not (loopback or keys or settings.allow_remote):
        raise SettingsError(
            f"EVERLENS_HOST={settings.host} can be reached from other machines and there are no "
            "API keys; make one with `everlens keys add NAME`, listen on 127.0.0.1, or set "
            "EVERLENS_ALLOW_REMOTE=true where something in front decides who may come"
        )


def _run(settings: Settings) -> EverlensError | None:
    """Serve until told to stop; return why the model could not be loaded, if so."""
    # Here and not above: torch takes seconds to load, and a wrong setting is told before.
    from everlens.model.backbone import load_backbone
    from everlens.model.runtime import choose_device, set_threads
    from service.app import create_app

    set_threads(settings.service_threads or len(os.sched_getaffinity(0)))

    def load() -> Backbone:
        backbone = load_backbone(
            settings.model,
            settings.pretrained,
            device=choose_device(settings.device),
            templates=settings.templates,
        )
        # What lives as long as the process, some 500,000 objects, is not looked at again: each time
        # nothing would be answered for a tenth of a second.
        gc.collect()
        gc.freeze()
        return backbone

    app = create_app(settings, load)
    config = server_config(app, settings, _connections(app.state.service.metrics))
    # uvicorn raises the signal again once it has ended in order; that end is a success.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(_Server(config, app.state.service), app.state.service))


def server_config(
    app: ASGIApp, settings: Settings, connections: type[asyncio.Protocol]
) -> uvicorn.Config:
    """Return how uvicorn serves an application over what `connections` makes."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=connections,
        loop="uvloop",
        ws="none",
        lifespan="on",
        # Not "warning": clients that send nonsense would fill the log; they are counted instead.
        log_level="error",
        access_log=False,
        log_config=None,  # its lines are ours
        server_header=False,
        # By itself uvicorn believes whoever comes from loopback, and a variable of its own.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
    )


class _Server(uvicorn.Server):
    """Ends answers that wait before it waits for all that are being given."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.end_waits()
        await super().shutdown(sockets)


def _connections(metrics: Metrics) -> type[asyncio.Protocol]:
    """Return what makes a connection; all of them know of each other."""

    def refused(reason: str) -> None:
        metrics.refused_connections.labels(reason).inc()

    owing = Owing(partial(refused, "crowded"))
    # uvicorn asks for a class, and calls it.
    return cast("type[asyncio.Protocol]", partial(Connection, owing=owing, refused=refused))


async def _serve(server: uvicorn.Server, service: Service) -> EverlensError | None:
    announcing = asyncio.create_task(_announce(server, service))
    await server.serve()
    announcing.cancel()
    return service.failure


async def _announce(server: uvicorn.Server, service: Service) -> None:
    await service.settled.wait()
    if service.failure is not None:
        server.should_exit = True
        return
    model = service.loaded()
    log.info(
        "everlens answers on http://%s:%d with %s, version %d",
        server.config.host,
        server.config.port,
        model.backbone.name,
        model.serving.current.version,
    )


if __name__ == "__main__":
    sys.exit(main())
