"""The settings of a run: what each key accepts, what a config may instantiate, and how a config is composed.

``schema.RULES`` is the schema of ``conf/``. A new key of the project needs a YAML value and a rule; keys of other
people's ``_target_``s need neither.
"""

from arnn_lightning.config.check import WITHOUT, check_settings, check_values
from arnn_lightning.config.composition import (
    CONFIG_DIR_PROVIDER,
    USER_CONFIG_DIR,
    applied_files,
    choices_name,
    config_dir_option,
)
from arnn_lightning.config.suggestions import no_key
from arnn_lightning.config.targets import check_targets, install_hint, instantiate, to_container
from arnn_lightning.config.unused import unused_settings

__all__ = [
    "CONFIG_DIR_PROVIDER",
    "USER_CONFIG_DIR",
    "WITHOUT",
    "applied_files",
    "check_settings",
    "check_targets",
    "check_values",
    "choices_name",
    "config_dir_option",
    "install_hint",
    "instantiate",
    "no_key",
    "to_container",
    "unused_settings",
]
