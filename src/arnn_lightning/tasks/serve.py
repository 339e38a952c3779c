"""task=serve: recommendations of a checkpoint over HTTP."""

import gc
import ipaddress
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    gc.freeze()  # as in make_service
    worker = Worker(make_service, checkpoint_file(config.checkpoint), OmegaConf.to_container(config, resolve=True))
    app = make_app(worker.ask, token, int(1_000 * config.max_body_kb), worker.lifespan)
    try:
        run_app(app, config.host, config.port)
    finally:
        worker.close()


def make_service(checkpoint: Path, config: Mapping[str, Any]) -> "Service":
    """The service of a checkpoint with the settings of a config; the model is replaced when the file changes."""
    import torch

    from arnn_lightning.serving.predictor import load
    from arnn_lightning.serving.service import ReloadingPredictor, Service, SessionStore

    if config["performance"]["threads"] is not None:
        torch.set_num_threads(int(config["performance"]["threads"]))
    # Leaves the 470,000 objects of modules out of garbage collections: a full one, which stops all requests, takes .3 s
    # with them. The model is loaded later, since it must be collected when it is replaced.
    gc.freeze()
    models = ReloadingPredictor(
        checkpoint, lambda file: load(file, config["trusted_modules"]), config["reload_seconds"]
    )
    threading.Thread(target=models.watch, daemon=True).start()
    return Service(models, SessionStore(config["max_sessions"], 60 * config["session_minutes"]))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0"), is_loopback("example.org")
    (True, True, False, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
