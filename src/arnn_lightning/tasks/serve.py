"""task=serve: recommendations of a checkpoint over HTTP."""

import gc
import ipaddress
import os
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from arnn_lightning.config import install_hint
from arnn_lightning.errors import UserError
from arnn_lightning.run_folder import checkpoint_file

if TYPE_CHECKING:
    from arnn_lightning.serving.service import Service

TOKEN = "ARNN_TOKEN"


def run(config: DictConfig) -> None:
    """Serves until SIGINT or SIGTERM; requests under way are answered first."""
    token = os.environ.get(TOKEN)
    if token == "":  # such as from a secret that is missing: the service would be open to everybody
        raise UserError(f"{TOKEN} is empty; set it to the token, or unset it to serve without one")
    if token is None and not config.public and not is_loopback(config.host):
        raise UserError(
            f"host={config.host}: reachable by other machines without a token; set the variable {TOKEN}, or public=true"
        )
    try:
        from arnn_lightning.serving.http import make_app, run_app
        from arnn_lightning.serving.worker import Worker
    except ModuleNotFoundError as error:
        raise UserError(f"task=serve: {error}{install_hint('serve')}") from error
    checkpoint = checkpoint_file(config.checkpoint)
    check_address(config.host, config.port)
    gc.freeze()  # as in make_service
    worker = Worker(
        make_service,
        checkpoint,
        OmegaConf.to_container(config.trusted_modules),
        config.performance.threads,
        config.reload_seconds,
        config.max_sessions,
        60 * config.session_minutes,
    )
    app = make_app(worker.ask, token, int(1_000 * config.max_body_kb), worker.lifespan)
    try:
        run_app(app, config.host, config.port)
    finally:
        worker.close()


def make_service(
    checkpoint: Path,
    trusted_modules: Sequence[str],
    threads: int | None,
    reload_seconds: float,
    max_sessions: int,
    session_seconds: float,
) -> "Service":
    """The service of a checkpoint; the model is replaced when the file changes.

    Args:
        checkpoint: the file.
        trusted_modules: as of ``load``.
        threads: of torch; None: its default.
        reload_seconds: between two checks of the file.
        max_sessions, session_seconds: as of ``SessionStore``.
    """
    import torch

    from arnn_lightning.serving.predictor import load
    from arnn_lightning.serving.service import ReloadingPredictor, Service, SessionStore

    if threads is not None:
        torch.set_num_threads(threads)
    # Leaves the 470,000 objects of modules out of garbage collections: a full one, which stops all requests, takes .3 s
    # with them. The model is loaded later, since it must be collected when it is replaced.
    gc.freeze()
    models = ReloadingPredictor(checkpoint, lambda file: load(file, trusted_modules), reload_seconds)
    threading.Thread(target=models.watch, daemon=True).start()
    return Service(models, SessionStore(max_sessions, session_seconds))


def check_address(host: str, port: int) -> None:
    """Tries whether the service can listen there: before the model is loaded, which takes longer.

    Raises:
        UserError: the host is unknown, or the port is in use or reserved.
    """
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as server:  # with the options of asyncio's servers
                if sys.platform != "win32":
                    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                server.bind(address)
    except (OSError, UnicodeError) as error:  # UnicodeError: a label of the name is empty or too long
        reason = error.strerror if isinstance(error, OSError) else "not a valid host name"
        raise UserError(f"host={host} port={port}: {reason}; choose another host or port") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0"), is_loopback("example.org")
    (True, True, False, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
