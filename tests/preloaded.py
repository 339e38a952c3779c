"""Imported once by the process of which those of commands are forked: all modules, and the work of most commands."""

import gc
import importlib
import pkgutil

import arnn_lightning.models
import arnn_lightning.tasks
from reused import reuse, work_ahead

for module in pkgutil.iter_modules(arnn_lightning.tasks.__path__, "arnn_lightning.tasks."):
    importlib.import_module(module.name)
reuse()
work_ahead()
gc.freeze()  # half a million objects that each full collection would walk through
