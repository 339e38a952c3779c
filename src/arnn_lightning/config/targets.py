"""``_target_``s: which of them a checkpoint may name, and instantiating them."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, OmegaConf

from arnn_lightning.errors import UserError

OWN = "arnn_lightning."
EXTRAS = ("completejourney", "export", "joblib", "ray", "serve", "submitit", "tensorboard", "tune")  # of pyproject.toml
# A checkpoint's config comes from outside and instantiating is calling: only what these modules themselves define.
TRUSTED = (
    *(f"{OWN}{package}" for package in ("encoders", "loading", "losses", "models", "nn", "optim", "readers")),
    f"{OWN}simulation",
    "torch.optim",
)


def check_targets(config: Any, trusted_modules: Sequence[str] = ()) -> None:
    """Checks the config of a checkpoint before anything in it is instantiated.

    Args:
        config: plain values, interpolations resolved.
        trusted_modules: modules of the user that may be called in addition to this package and torch's optimizers.

    Raises:
        UserError: a ``_target_`` that no trusted module defines, or an interpolation, which could produce one.
    """
    if isinstance(config, Mapping):
        if "_target_" in config and not _is_trusted(str(config["_target_"]), (*TRUSTED, *trusted_modules)):
            raise UserError(
                f"_target_ {config['_target_']} is not in a trusted module (trusted: "
                f"{', '.join((*TRUSTED, *trusted_modules))}); if you trust the checkpoint, add its module, as in "
                "trusted_modules=[mypackage]"
            )
        config = list(config.values())
    if isinstance(config, str) and "${" in config:
        raise UserError(f"a checkpoint's config must not contain interpolations: {config}")
    if isinstance(config, list | tuple):
        for value in config:
            check_targets(value, trusted_modules)


def to_container(config: Any) -> Any:
    """A config as plain Python values, interpolations resolved."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def instantiate(config: Any, **arguments: Any) -> Any:
    """Calls the ``_target_`` of ``config``, as ``hydra.utils.instantiate`` does.

    Raises:
        UserError: raised by the target itself; no such target; missing or unknown arguments; a package not installed.
    """
    try:
        return hydra_instantiate(config, **arguments)
    except InstantiationException as error:
        target = config.get("_target_") if isinstance(config, Mapping | DictConfig) else config
        message = " ".join(str(error).split())
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from None
            if type(cause).__name__ == "MisconfigurationException":  # Lightning's, of an argument; it costs an import
                name = "trainer" if target == "pytorch_lightning.Trainer" else target
                raise UserError(f"{name}: {' '.join(str(cause).split())}") from error
            if isinstance(cause, ModuleNotFoundError):
                hint = install_hint(message.rpartition(".")[2])  # the last part of the config's key
                raise UserError(f"{target}: {str(cause).splitlines()[0]}{hint}") from error
            # Raised by the call itself, not within it: the arguments do not fit.
            if isinstance(cause, TypeError) and cause.__traceback__ and cause.__traceback__.tb_next is None:
                raise UserError(f"{target}: {cause}") from error
            cause = cause.__cause__
        if error.__cause__ is None:  # Hydra's refusal
            raise UserError(message) from error
        raise


def install_hint(extra: str) -> str:
    """How to install an optional part, where ``extra`` names one."""
    names = [name for name in EXTRAS if extra.startswith(name)]  # the launchers submitit_local and submitit_slurm
    return f"; pip install 'arnn-lightning[{names[0]}]'" if names else ""


def _is_trusted(target: str, modules: Sequence[str]) -> bool:
    def below(name: str) -> bool:
        return any(name == module or name.startswith(f"{module}.") for module in modules)

    if not below(target):
        return False
    module, _, name = target.rpartition(".")
    try:
        located = getattr(import_module(module), name)
    except Exception:  # whatever importing it raises
        return False
    # "torch.optim.optimizer.cast" begins like a trusted name, too.
    return callable(located) and below(str(getattr(located, "__module__", "")))
