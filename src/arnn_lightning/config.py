"""Hydra's instantiate, with a UserError shown as it is."""

from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate as hydra_instantiate

from arnn_lightning.errors import UserError

# Configs of the user: searched before those of the package, whose folder may not be writable.
USER_CONFIG_DIR = Path("arnn_conf")


def instantiate(config: Any, **settings: Any) -> Any:
    """Makes the object that ``config``'s ``_target_`` names.

    Raises:
        UserError: the target's own, which Hydra wraps in an exception of many lines.
    """
    try:
        return hydra_instantiate(config, **settings)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from None
            cause = cause.__cause__
        raise
