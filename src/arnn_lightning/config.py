"""The settings: what each key of the config accepts, which ``_target_``s a checkpoint may name, and instantiation.

``RULES`` is the schema of ``conf/``. It is checked once, before torch is imported, so that a mistake costs a second and
one line. A new key of the project needs a YAML value and a rule; keys of other people's ``_target_``s need neither.
"""

import ast
import difflib
import math
import re
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module, resources
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arnn_lightning.errors import UserError

# Configs of the user: searched before those of the package, whose folder may not be writable.
USER_CONFIG_DIR = Path("arnn_conf")


class Rule(NamedTuple):
    """The values that a setting accepts.

    Attributes:
        allowed: completes the sentence "must be ...".
        accepts: whether a plain value (scalar, list or None) is allowed.
    """

    allowed: str
    accepts: Callable[[Any], bool]


def integer(low: int, high: int | None = None) -> Rule:
    allowed = f"an integer of at least {low}" if high is None else f"an integer between {low} and {high}"
    return Rule(allowed, lambda value: type(value) is int and low <= value <= (value if high is None else high))


def number(allowed: str, in_range: Callable[[float], bool]) -> Rule:
    def accepts(value: Any) -> bool:
        return type(value) in (int, float) and math.isfinite(value) and in_range(value)

    return Rule(f"a number {allowed}", accepts)


def choice(*values: str) -> Rule:
    return Rule(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


def text(allowed: str = "a string", pattern: str = r"(?s).*") -> Rule:
    return Rule(allowed, lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None)


def list_of(item: Rule, items: str, minimum: int = 1, maximum: float = math.inf) -> Rule:
    def accepts(value: Any) -> bool:
        return isinstance(value, list) and minimum <= len(value) <= maximum and all(map(item.accepts, value))

    return Rule(f"a list of {items}", accepts)


def either(*rules: Rule) -> Rule:
    return Rule(", or ".join(rule.allowed for rule in rules), lambda value: any(rule.accepts(value) for rule in rules))


NULL = Rule("null", lambda value: value is None)
BOOLEAN = Rule("true or false", lambda value: isinstance(value, bool))
TEXT = text()
PATHS = either(TEXT, list_of(TEXT, "strings, as in [a.csv,b.csv]"))
NOT_NEGATIVE = number("of at least 0", lambda x: x >= 0)
POSITIVE = number("above 0", lambda x: x > 0)
PROBABILITY = number("in [0, 1)", lambda x: 0 <= x < 1)
UNIT_INTERVAL = number("in [0, 1]", lambda x: 0 <= x <= 1)
COVERAGE = number("in (0, 1]", lambda x: 0 < x <= 1)
NAMES = list_of(TEXT, "names, as in [country,age]", minimum=0)
HEADER = either(list_of(TEXT, "names, as in [user,item,time]"), NULL)
CUTOFFS = list_of(integer(1), "integers of at least 1, as in [5,10,20]")
METRIC = text("a metric such as mrr@20", r"[a-z_]+@[1-9]\d*")
DEVICES = list_of(integer(0), "device indices, as in [0,1]")
EDGES = Rule(
    "edges in ascending order, as in [20,30,50]",
    lambda value: list_of(number("", lambda _: True), "").accepts(value) and value == sorted(set(value)),
)
YEARS = Rule(
    "two years, the earlier first, as in [1990,2030]",
    lambda value: list_of(integer(1700, 2260), "", 2, 2).accepts(value) and value[0] <= value[1],
)
NUMERIC = Rule("a mapping of names to a number of intervals or to their edges, as in {age: 5}, or null", NULL.accepts)
NO_ZONES = {"localtime", "Factory"}  # of the system's list, polars does not know these
TIMEZONE = Rule(
    "a time zone such as Europe/Berlin",
    lambda value: isinstance(value, str) and (value == "UTC" or value in zoneinfo.available_timezones() - NO_ZONES),
)
DURATION = r"([1-9]\d*)([smh])"
DECAY = choice("same", "div", "linear", "log", "quadratic")
POPULARITY_SCOPE = choice("log", "window", "train")

# Keys of a model that specify its training stage; checked for every model, whoever wrote it.
TRAINING_RULES = {
    "model.name": TEXT,
    "model.batch_size": integer(1),
    "model.epochs": integer(1),
    "model.patience": either(integer(0), NULL),
    "model.n_sample": integer(0),
    "model.sample_alpha": NOT_NEGATIVE,
    "model.negatives": choice("global", "local"),
    "model.attribute_dropout": PROBABILITY,
    "model.item_contexts": choice("none", "add", "fields"),
    "model.clip_norm": either(POSITIVE, NULL),
    "model.tuned_on": TEXT,  # in files of task=tune: the sha256 of the raw files
    "model.optimizer.lr": NOT_NEGATIVE,
}
# Encoders (model.session, model.context) and baselines follow the rules of model, data.generate those of schema.
RULES = TRAINING_RULES | {
    "seed": integer(0, 2**32 - 1),
    "resume": BOOLEAN,
    "trusted_modules": list_of(text(pattern=r"\w+(\.\w+)*"), "module names, as in [mypackage]", minimum=0),
    "paths.data": TEXT,
    "paths.studies": TEXT,
    "pretrained.session": either(TEXT, NULL),
    "pretrained.context": either(TEXT, NULL),
    "performance.threads": either(integer(1), NULL),
    "performance.steps_per_execution": integer(1),
    "performance.compile": BOOLEAN,
    "performance.cache_mb": NOT_NEGATIVE,
    "evaluation.metrics": list_of(text(pattern=r"[a-z_]+"), "metrics, as in [recall,mrr]"),
    "evaluation.cutoffs": CUTOFFS,
    "evaluation.monitor": METRIC,
    "evaluation.ties": choice("conservative", "standard", "median"),
    "evaluation.batch_size": integer(1),
    "evaluation.groups": NAMES,
    "evaluation.bootstrap.resamples": integer(1),
    "evaluation.bootstrap.confidence": number("in (0, 1)", lambda x: 0 < x < 1),
    "evaluation.bootstrap.unit": choice("user", "session"),
    # trainer: any other key must be an argument of Lightning's Trainer
    "trainer.accelerator": choice("cpu", "gpu", "cuda", "mps", "tpu", "auto"),
    "trainer.devices": either(integer(1), Rule("-1 or auto", lambda value: value in (-1, "auto")), DEVICES),
    "trainer.num_nodes": integer(1),
    "trainer.strategy": NULL,
    "trainer.strategy.process_group_backend": either(choice("gloo", "nccl"), NULL),
    "trainer.strategy.timeout_minutes": POSITIVE,
    "trainer.precision": choice("32-true", "bf16-mixed"),
    "trainer.max_epochs": either(integer(1), NULL),
    "trainer.max_steps": integer(-1),
    "trainer.check_val_every_n_epoch": either(integer(1), NULL),
    "trainer.log_every_n_steps": integer(1),
    "trainer.num_sanity_val_steps": integer(-1),
    "trainer.deterministic": either(BOOLEAN, text("warn", "warn")),
    "trainer.enable_model_summary": BOOLEAN,
    "trainer.use_distributed_sampler": BOOLEAN,
    # models
    "model.hidden_size": integer(1),
    "model.embedding_size": integer(1),
    "model.layers": integer(1),
    "model.blocks": integer(1),
    "model.heads": integer(1),
    "model.embedding": choice("onehot", "separate", "tied"),
    "model.dropout": PROBABILITY,
    "model.dropout_embedding": PROBABILITY,
    "model.dropout_hidden": PROBABILITY,
    "model.carry_dropout": BOOLEAN,
    "model.products": BOOLEAN,
    "model.product_method": choice("auto", "gram", "closed"),
    "model.fusion.embedding_size": integer(1),
    "model.fusion.n_tokens": integer(1),
    "model.freeze_encoders": BOOLEAN,
    "model.finetune_context_batchnorm": BOOLEAN,
    "model.scheduler": NULL,
    "model.scheduler_interval": choice("epoch", "step"),
    "model.neighbours": integer(1),
    "model.shrinkage": NOT_NEGATIVE,
    "model.alpha": UNIT_INTERVAL,
    "model.steps": integer(1),
    "model.weighting": DECAY,
    "model.weighting_score": DECAY,
    "model.similarity": choice("dot", "cosine"),
    "model.idf_weighting": NOT_NEGATIVE,
    "model.sample_size": integer(1),
    "model.last_n_events": integer(1),
    "model.lambda_spw": either(POSITIVE, NULL),
    "model.lambda_snh": either(POSITIVE, NULL),
    "model.lambda_inh": either(POSITIVE, NULL),
    "model.lambda_ipw": either(POSITIVE, NULL),
    "model.lambda_idf": either(NOT_NEGATIVE, NULL),
    "model.context_weight": NOT_NEGATIVE,
    "model.optimizer.eps": NOT_NEGATIVE,
    "model.optimizer.weight_decay": NOT_NEGATIVE,
    "model.optimizer.momentum": NOT_NEGATIVE,
    "model.optimizer.betas": list_of(PROBABILITY, "two numbers in [0, 1), as in [0.9,0.999]", 2, 2),
    "model.loss.activation": choice("softmax", "tanh", "linear", "elu"),
    "model.loss.elu_alpha": POSITIVE,
    "model.loss.candidates": choice("batch", "all"),
    "model.loss.accidental_hits": choice("mask", "keep"),
    "model.loss.logq": UNIT_INTERVAL,
    "model.loss.bpreg": NOT_NEGATIVE,
    # data
    "data.name": text(
        "letters, digits, _, . and -, and must not start with ., since it names folders", r"[\w-][\w.-]*"
    ),
    "data.note": either(TEXT, NULL),
    "data.raw_dir": either(TEXT, NULL),
    "data.events": PATHS,
    "data.users": either(PATHS, NULL),
    "data.titles": either(PATHS, NULL),
    "data.columns.*": either(TEXT, NULL),
    "data.where": NULL,  # or a mapping
    "data.time_format": either(TEXT, NULL),
    "data.date_format": either(TEXT, NULL),
    "data.decimal": choice(".", ","),
    "data.list_separator": text("text of at least one character", r"(?s).+"),
    "data.null_values": list_of(TEXT, 'strings, as in ["",NULL]', minimum=0),
    "data.source": either(TEXT, NULL),
    "data.header": HEADER,
    "data.users_header": HEADER,
    "data.titles_header": HEADER,
    "data.incomplete": choice("error", "drop"),
    "data.time_unit": choice("auto", "s", "ms", "us", "ns"),
    "data.years": either(YEARS, NULL),
    "data.quote": either(text("one ASCII character", "[\0-\x7f]"), NULL),
    "data.encoding": TEXT,
    "data.timezone": TIMEZONE,
    "data.window_days": either(integer(1), NULL),
    "data.session": choice("gap", "day", "given"),
    "data.duplicates": choice("keep", "drop"),
    "data.repeats": choice("keep", "drop"),
    "data.gap": either(
        text("a duration such as 90s, 30m, 1h or 1d", r" *0*[1-9]\d* *[smhd]? *"),
        Rule("a number of seconds", integer(1).accepts),
        NULL,
    ),
    "data.items.popularity_coverage": COVERAGE,
    "data.items.most_popular": either(integer(1), NULL),
    "data.items.popularity_scope": POPULARITY_SCOPE,
    "data.items.min_events": integer(1),
    "data.items.cold": choice("drop", "keep"),
    "data.min_session_length": integer(2),
    "data.max_session_length": either(integer(2), NULL),
    "data.split.test_days": either(integer(0), NULL),
    "data.split.val_days": either(integer(0), NULL),
    "data.split.test_share": either(PROBABILITY, NULL),
    "data.split.val_share": either(PROBABILITY, NULL),
    "data.held_out_user_share": PROBABILITY,
    "data.contexts.single": NAMES,
    "data.contexts.multi": NAMES,
    "data.contexts.numeric": NUMERIC,
    "data.contexts.numeric.*": either(integer(2), EDGES),
    "data.contexts.min_events": integer(1),
    "data.contexts.coverage": COVERAGE,
    "data.contexts.assignment": choice("own", "permuted", "per_session", "unknown"),
    "data.contexts.dropout": either(PROBABILITY, NULL),
    "data.contexts.n_attributes": either(integer(0), NULL),
    "data.item_contexts.single": NAMES,
    "data.item_contexts.multi": NAMES,
    "data.item_contexts.numeric": NUMERIC,
    "data.item_contexts.numeric.*": either(integer(2), EDGES),
    "data.item_contexts.min_events": integer(1),
    "data.item_contexts.coverage": COVERAGE,
    "data.item_contexts.assignment": choice("own", "permuted"),
    "data.context_strength": UNIT_INTERVAL,
    "published": NULL,
    "schema.events": integer(1),
    "schema.seed": integer(0),
    "schema.context_strength": UNIT_INTERVAL,
    "schema.*": NOT_NEGATIVE,
    # tasks
    "checkpoint": TEXT,
    "controls": either(PATHS, NULL),
    "id_tables": either(TEXT, NULL),
    "init_from": either(TEXT, NULL),
    "license": either(TEXT, NULL),
    "lists": either(TEXT, NULL),
    "name": either(TEXT, NULL),
    "checkpoint.every_n_minutes": POSITIVE,
    "checkpoint.users": BOOLEAN,
    "events": integer(1),
    "output": TEXT,
    "input": TEXT,
    "users": either(TEXT, NULL),
    "k": integer(1),
    "exclude_seen": BOOLEAN,
    "host": TEXT,
    "port": integer(1, 65_535),
    "public": BOOLEAN,
    "max_sessions": integer(1),
    "session_minutes": POSITIVE,
    "max_body_kb": POSITIVE,
    "reload_seconds": POSITIVE,
    "on_unknown": choice("warn", "raise", "ignore"),
    "runs": PATHS,
    "report.metrics": either(list_of(METRIC, "metrics, as in [recall@20,mrr@20]"), NULL),
    "report.base": TEXT,
    "report.cutoffs": CUTOFFS,
    "models": list_of(TEXT, "models, as in [gru4rec,arnn]"),
    "budget": text("a duration such as 90s, 15m or 2h", DURATION),
    "max_seeds": integer(2),
    "smallest_gain": PROBABILITY,
    "non_neural": list_of(TEXT, "non-neural models, as in [pop,vsknn]"),
    "trials": integer(0),
    "workers": integer(1),
    "pruner": NULL,
    "space": list_of(TEXT, "search spaces, as in ['model.dropout=interval(0,0.5)']", minimum=0),
}
# Mappings whose keys are somebody else's: arguments of a _target_, tables, search spaces.
FREE = (
    *("callbacks", "data.reader", "data.where", "logger", "model.dims", "model.scheduler", "published", "pruner"),
    *("sampler", "search", "task"),
)
OPEN_SECTIONS = ("callbacks", "logger", "trainer")  # mappings whose keys are others' classes or arguments
COLUMNS = ("data.where", "data.contexts.numeric", "data.item_contexts.numeric")  # mappings whose keys are columns
ENCODERS = ("session", "context")
INSTANTIATED = (
    "data.reader",
    "model",
    "model.fusion",
    "model.loss",
    "model.optimizer",
    "model.scheduler",
    "pruner",
    "sampler",
    "task",
    "trainer",
)
SECTIONS = {key.partition(".")[0] for key in (*RULES, *FREE)}
# Keys of version 0.1.0.
RENAMED = {
    "model.lanes": "model.batch_size",
    "model.n_layers": "model.layers",
    "model.cache_mb": "performance.cache_mb",
    "model.freeze": "model.freeze_encoders",
    "model.retrain_batchnorm": "model.finetune_context_batchnorm",
    "model.loss.function": "model.loss",
    "evaluation.lanes": "evaluation.batch_size",
    "window_steps": "performance.steps_per_execution",
    "threads": "performance.threads",
    "compile": "performance.compile",
    "precision": "trainer.precision",
    "data.contexts.draw": "data.contexts.assignment",
    "data.contexts.shown": "data.contexts.n_attributes",
    "data.held_out_users": "data.held_out_user_share",
    "data.items.coverage": "data.items.popularity_coverage",
    "data.items.counted_over": "data.items.popularity_scope",
    "data.paper": "published",
    "checkpoint.minutes": "checkpoint.every_n_minutes",
    "logger.wandb.answer_seconds": "logger.wandb.connect_timeout_s",
    "logger.wandb.upload_seconds": "logger.wandb.upload_timeout_s",
    "schema.own_role": "schema.own_role_prob",
    "schema.region_pull": "schema.region_boost",
    "schema.level_pull": "schema.level_boost",
    "schema.page": "schema.n_candidates",
    "schema.stray": "schema.noise_rate",
    "schema.half": "schema.head_share",
    "schema.skew": "schema.class_skew",
    "schema.favourites": "schema.n_favourite_categories",
    "schema.loyalty": "schema.favourite_prob",
    "schema.switch": "schema.intent_switch_prob",
    "schema.persona_pull": "schema.persona_boost",
}
WITHOUT = {  # how to do without a required setting
    "logger": "; logger=none logs nothing",
    "baselines": "; to leave out baselines, remove each, as in ~baselines.pop",
}
REQUIRED = (
    "seed",
    "paths",
    "performance",
    "evaluation",
    "pretrained",
    "data",
    "model",
    "baselines",
    "trainer",
    "logger",
    "task",
)
# Arguments of Lightning's Trainer that the project sets itself, and where to set them instead.
RESERVED = {
    "callbacks": "add callbacks, as in '+callbacks.stop={_target_: mymodule.Stop}'",
    "logger": "choose one with logger=csv, or add one, as in '+logger.x={_target_: mymodule.Logger}'",
    "default_root_dir": "set hydra.run.dir",
    "enable_checkpointing": "checkpoints are always saved",
    "enable_progress_bar": "the bar is shown on terminals only",
    "gradient_clip_val": "set model.clip_norm",
    "accumulate_grad_batches": "set model.batch_size",
    "limit_val_batches": "metrics need every prediction; validate less often with +trainer.check_val_every_n_epoch=2",
    "limit_test_batches": "metrics need every prediction",
    "fast_dev_run": "set trainer.max_epochs=1 and +trainer.limit_train_batches=1",
    "overfit_batches": "set +trainer.limit_train_batches=1",
    "barebones": "a run must log its metrics",
    "plugins": "the package has its own; trainer.precision sets the precision",
    "gradient_clip_algorithm": "model.clip_norm clips by the norm",
    "sync_batchnorm": "batch norms already use the statistics of all devices",
    "limit_predict_batches": "recommendations are made by task=recommend",
}
# Where a task does not read every setting: the sections that it reads, and why the others have no effect.
READ_BY_TASK = {
    "prepare": (("data", "paths", "id_tables"), "task=prepare reads data, paths and id_tables only"),
    "generate": (("schema", "events", "output"), "task=generate reads schema, events and output only"),
    "report": (
        ("runs", "report", "evaluation", "seed", "paths", "published"),
        "task=report reads the runs' own settings",
    ),
    "verdict": (
        (
            *("budget", "max_seeds", "smallest_gain", "non_neural", "data", "evaluation", "performance", "trainer"),
            *("paths", "seed", "logger", "published"),
        ),
        "task=verdict trains its models with their own settings",
    ),
    "evaluate": (
        (
            *("checkpoint", "trusted_modules", "evaluation", "performance", "trainer", "paths"),
            *("data", "data.contexts.assignment", "data.raw_dir", "data.events", "data.users", "data.titles"),
        ),
        "task=evaluate takes model and data from the checkpoint",
    ),
    "lists": (
        ("lists", "name", "data", "evaluation", "performance", "trainer", "paths", "seed", "logger"),
        "task=evaluate lists= has no model",
    ),
}


class Unused(NamedTuple):
    """Settings that have no effect while a condition holds.

    Attributes:
        keys: a regular expression on canonical keys.
        condition: of the whole config and of the model that has the key.
        reason: completes "has no effect: ...".
    """

    keys: str
    condition: Callable[[DictConfig, DictConfig], bool]
    reason: str


def where(path: str, *values: Any) -> Callable[[DictConfig, DictConfig], bool]:
    """Whether ``path`` of the config, or of the model where it starts with a dot, exists and has one of ``values``."""

    def condition(config: DictConfig, model: DictConfig) -> bool:
        node, key = (model, path[1:]) if path.startswith(".") else (config, path)
        return OmegaConf.select(node, key, default="???") in values

    return condition


def _is_pretrained(config: DictConfig, model: DictConfig) -> bool:
    return any(path is not None and config.model.get(role) is model for role, path in config.pretrained.items())


def _has_no_validation(config: DictConfig, model: DictConfig) -> bool:
    return not config.data.split.val_days and not config.data.split.val_share


def _has_no_optimizer(config: DictConfig, model: DictConfig) -> bool:
    return "optimizer" not in config.model and str(config.model._target_).startswith(OWN)


UNUSED = (
    Unused(r"model\.dims\..*", lambda *_: True, "it is derived from the data"),
    Unused(r"model\.sample_alpha", where(".n_sample", 0), "n_sample is 0"),
    Unused(
        r"model\.(n_sample|sample_alpha|negatives|loss\.accidental_hits)",
        where(".loss.candidates", "all"),
        "the loss scores all items (loss.candidates=all)",
    ),
    Unused(r"model\.negatives", where("trainer.strategy", None, "???"), "there is one device; see trainer=ddp"),
    Unused(r"model\.loss\.elu_alpha", where(".loss.activation", "softmax", "tanh", "linear"), "activation is not elu"),
    Unused(
        r"model\.patience|evaluation\.monitor",
        _has_no_validation,
        "there is no validation split (data.split), the last epoch is kept",
    ),
    Unused(r"model\.scheduler_interval", where(".scheduler", None), "there is no scheduler"),
    Unused(r"model\.finetune_context_batchnorm", where(".freeze_encoders", False), "no encoder is frozen"),
    Unused(r"model\.product_method", where(".products", False), "products is false"),
    Unused(r"model\.carry_dropout", where(".dropout_hidden", 0), "dropout_hidden is 0"),
    Unused(r"model\.dropout_embedding", where(".embedding", "onehot"), "embedding=onehot has no embedding"),
    Unused(
        r"model\.(patience|clip_norm|scheduler|scheduler_interval|optimizer\..*|loss\..*)",
        _is_pretrained,
        "this encoder is pretrained, not trained in this run",
    ),
    Unused(  # a fusion is trained with those of its session encoder, unless it has others
        r"model\.(batch_size|epochs)",
        lambda config, model: _is_pretrained(config, model) and "fusion" not in config.model,
        "this encoder is pretrained, not trained in this run",
    ),
    Unused(r"performance\.cache_mb", where("model.freeze_encoders", False, "???"), "no encoder is frozen"),
    Unused(
        r"checkpoint\..*|performance\.compile|trainer\.(precision|max_steps)",
        _has_no_optimizer,
        "the model has no optimizer",
    ),
    Unused(r"data\.gap", where("data.session", "day", "given"), "data.session is not gap"),
    Unused(r"data\.columns\.session", where("data.session", "day", "gap"), "data.session is not given"),
    Unused(r"data\.columns\.user_in_users", where("data.users", None), "there is no table data.users"),
    Unused(r"data\.columns\.(item_in_titles|title)", where("data.titles", None), "there is no table data.titles"),
    Unused(
        r"data\.items\.popularity_scope",
        lambda config, _: (
            (items := config.data["items"]).popularity_coverage == 1.0
            and items.min_events == 1
            and items.most_popular is None
        ),
        "all items are kept",
    ),
    Unused(
        r"data\.contexts\.dropout", where("model.attribute_dropout", "???"), "the model reads no attributes of users"
    ),
    Unused(
        r"data\.contexts\.dropout",
        lambda config, _: config.data.contexts.dropout not in (None, config.model.attribute_dropout),
        "model.attribute_dropout (command line or tuned file) takes precedence",
    ),
    Unused(
        r"data\.contexts\.coverage",
        where("data.contexts.multi", []),
        "there is no multi-valued attribute (data.contexts.multi)",
    ),
    Unused(
        r"data\.item_contexts\.coverage",
        where("data.item_contexts.multi", []),
        "there is no multi-valued attribute (data.item_contexts.multi)",
    ),
    Unused(
        r"data\.list_separator",
        lambda config, _: not config.data.contexts.multi and not config.data.item_contexts.multi,
        "there is no multi-valued attribute (data.contexts.multi, data.item_contexts.multi)",
    ),
    Unused(
        r"schema\..*|data\.context_strength",
        lambda config, _: config.data.get("raw_dir") is not None,
        "data.raw_dir is read, nothing is simulated",
    ),
)
OWN = "arnn_lightning."
EXTRAS = ("completejourney", "export", "joblib", "ray", "serve", "submitit", "tensorboard", "tune")  # of pyproject.toml
# A checkpoint's config comes from outside and instantiating is calling: only what these modules themselves define.
TRUSTED = (
    *(f"{OWN}{package}" for package in ("encoders", "loading", "losses", "models", "nn", "optim", "readers")),
    f"{OWN}simulation",
    "torch.optim",
)


def choices_name(package: str, *parts: str, _root_: DictConfig) -> str:
    """The data set, the model at ``package`` and the choices of its ``parts``, such as synthetic_gru4rec_top1_adagrad.

    The resolver ``choices`` of the defaults list in ``conf/config.yaml``: the name of a model's tuned file. A value
    that was tuned with one loss and optimizer has no meaning with another.

    Args:
        package: where the model is in the config, as in ``model.session``.
        parts: ``loss``, ``optimizer``; models without them are named without them.
        _root_: the choices so far, by group and package.
    """
    if package == "model":
        groups = ["data", "model", *(f"model/{part}" for part in parts)]
    else:
        groups = ["data", f"model@{package}", *(f"model/{part}@{package}.{part}" for part in parts)]
    return "_".join(str(_root_[group]) for group in groups if group in _root_)


OmegaConf.register_new_resolver("choices", choices_name)
# A model's default for a setting of the data: its value, or, where that is null, the model's.
OmegaConf.register_new_resolver("first", lambda *values: next((value for value in values if value is not None), None))


def applied_files(config: DictConfig, runtime: Any, group: str = "tuned") -> dict[str, str]:
    """The files of ``group`` that a run's config contains, by package; ``runtime`` is ``hydra.runtime``.

    Hydra's choices name optional files also where there are none, and packages that the command line deletes.
    """
    files = {}
    for choice, name in runtime.choices.items():
        package = choice.partition("@")[2]
        if choice.startswith(f"{group}@") and OmegaConf.select(config, package) is not None:
            for source in runtime.config_sources:
                root = {"file": Path, "pkg": resources.files}.get(source.schema)
                if root is not None and source.path and root(source.path).joinpath(group, f"{name}.yaml").is_file():
                    files[package] = f"{source.path}/{group}/{name}.yaml"
                    break
    return files


def check_settings(config: DictConfig, overrides: Sequence[str], groups: Iterable[str]) -> None:
    """Checks every setting of a composed config.

    Args:
        config: the whole config of a run, with or without its ``hydra`` part.
        overrides: the command line's, without those of Hydra.
        groups: the config groups that were chosen from, such as ``model/loss``.

    Raises:
        UserError: a key that nothing reads, or a value of the wrong kind or out of range; names what is allowed.
    """
    for name in REQUIRED:
        if OmegaConf.select(config, name) is None:
            raise UserError(f"{name} is required{WITHOUT.get(name, '')}")
    _check_overrides(config, overrides, set(groups))
    # A value before those that refer to it: the error names what was set.
    for _, key, value, owner in sorted(_settings(config), key=itemgetter(0)):
        name = canonical(key)
        if name.startswith("trainer.") and name not in RULES:
            _check_trainer_key(key, config)
        mapping = next((columns for columns in COLUMNS if name.startswith(f"{columns}.")), name.rpartition(".")[0])
        rule = RULES.get(name) or RULES.get(f"{mapping}.*")
        if rule is None:
            if _is_own(owner) or name in FREE:
                raise _not_a_setting(config, key, name, value)
        elif name not in TRAINING_RULES and _is_foreign(owner) and name.startswith(("model.", "schema.")):
            pass  # an argument of somebody else's class, whose meaning is theirs
        elif name in FREE and not rule.accepts(value):
            raise _not_a_setting(config, key, name, value)
        elif not rule.accepts(value):
            raise _wrong_value(key, value, rule)
    for key, model in [("model", config.model), *((f"model.{role}", config.model.get(role)) for role in ENCODERS)]:
        by_step = model is not None and model.get("scheduler_interval") == "step"
        if by_step and str(OmegaConf.select(model, "scheduler._target_")).endswith(".ReduceLROnPlateau"):
            raise UserError(f"{key}.scheduler_interval=step: ReduceLROnPlateau needs an epoch's loss; set it to epoch")
    for key, node in _instantiated(config):
        if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
            raise UserError(f"{key}: needs a _target_, a class or function as in mypackage.MyClass")
        if re.fullmatch(r"model|baselines\.[^.]+", key) and "dims" not in node:
            raise UserError(f"{key}: needs dims, the sizes of the data; start its YAML with defaults: [_base, _self_]")
        if key.endswith(".scheduler") and not node.get("_partial_"):
            raise UserError(f"{key}: needs _partial_: true, since the optimizer is added to its arguments")
    if str(config.task._target_).startswith(f"{OWN}tasks.train.") and isinstance(config.checkpoint, str):
        raise UserError(
            f"checkpoint={config.checkpoint}: task=train reads none; for a trained encoder set pretrained.session"
        )
    data: Any = OmegaConf.to_container(config.data, resolve=False)
    for path in (data.get(table) for table in ("events", "users", "titles")):
        if isinstance(path, str) and "{.raw_dir}" in path and config.data.get("raw_dir") is None:
            raise UserError(f"data.raw_dir=null: must be the folder of {Path(path).name}, {config.data.source}")
    devices = config.trainer.get("devices")
    if config.trainer.get("accelerator") == "cpu" and OmegaConf.is_list(devices):
        raise UserError(
            f"trainer.devices=[{','.join(map(str, devices))}]: on a CPU, set a number of processes, such as 1"
        )
    for role, path in config.pretrained.items():
        if path is not None and role not in config.model:
            raise UserError(f"pretrained.{role}={path}: model {config.model.get('name')} has no {role} encoder")


def check_values(section: str, values: Mapping[str, Any]) -> None:
    """Checks plain values of one section, such as ``data``, which a library caller made without a command line.

    Raises:
        UserError: a value of the wrong kind or out of range.
    """
    for name, value in values.items():
        key = f"{section}.{name}"
        if canonical(key) in FREE:
            continue
        if isinstance(value, Mapping):
            check_values(key, value)
        elif (rule := RULES.get(canonical(key))) is not None and not rule.accepts(value):
            raise _wrong_value(key, value, rule)


def unused_settings(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """A line for each setting of the command line that has no effect in this run.

    Values that switch something off (null, false, 0) are not among them, nor is what a foreign task reads.

    Args:
        config: the config of a run, checked.
        overrides: the command line's, without those of Hydra.
    """
    task = str(config.task._target_)
    if not task.startswith(f"{OWN}tasks."):
        return []
    task = task.removeprefix(f"{OWN}tasks.").partition(".")[0]
    if task == "evaluate" and config.lists is not None:
        task = "lists"
    lines = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element().lstrip("+~")
        section = re.split(r"[./@]", key)[0]
        read, reason = READ_BY_TASK.get(task, ((section,), ""))
        if key not in read and not (section in read and f"{section}.raw_dir" not in read):
            if section not in ("task", "experiment"):
                hint = f"; did you mean schema.{key}?" if task == "generate" and f"schema.{key}" in RULES else ""
                lines.append(f"{key} has no effect: {reason}{hint}")
        elif task in ("train", "tune") and not override.is_delete() and override.value() not in (None, False, 0, 0.0):
            path = re.match(r"(model(\.(session|context))*|baselines\.[^.]+|)", key)
            model = OmegaConf.select(config, path[0]) if path and path[0] else config
            for rule in UNUSED:
                if re.fullmatch(rule.keys, canonical(key)) and rule.condition(config, model):
                    lines.append(f"{key} has no effect: {rule.reason}")
                    break
    return lines


def canonical(key: str) -> str:
    """The key under which ``RULES`` lists a setting.

    >>> canonical("model.session.optimizer.lr"), canonical("baselines.itemknn.alpha"), canonical("data.generate.seed")
    ('model.optimizer.lr', 'model.alpha', 'schema.seed')
    """
    key = re.sub(r"^baselines\.[^.]+", "model", re.sub(r"^data\.generate\b", "schema", key))
    return re.sub(r"^model(\.(session|context))+(?=\.|$)", "model", key)


def no_key(key: str, config: DictConfig, known: Iterable[str] = ()) -> UserError:
    """The error for a key that ``config`` does not have, with what it is called now or the most similar key.

    >>> config = OmegaConf.create({"model": {"dropout": 0, "session": {"optimizer": {"lr": 1}}}})
    >>> print(no_key("model.dropuot", config))
    no key model.dropuot; did you mean model.dropout?
    >>> print(no_key("model.optimizer.lr", config))
    no key model.optimizer.lr; did you mean model.session.optimizer.lr?
    >>> print(no_key("model.session.lr", config))
    no key model.session.lr; did you mean model.session.optimizer.lr?
    >>> print(no_key("model.size", OmegaConf.create({"model": {"sizes": 1, "encoder": {"size": 2}}})))
    no key model.size; did you mean model.encoder.size?
    >>> print(no_key("model.session.lanes", config))
    no key model.session.lanes; it is now model.session.batch_size

    Args:
        key: the key.
        config: the whole config.
        known: names that its section may have in addition to those in the config.
    """
    section, _, rest = canonical(key).partition(".")

    def in_section(rule: str) -> str:
        return key[: len(key) - len(rest)] + rule.partition(".")[2]

    new = RENAMED.get(canonical(key))
    if new is not None:
        return UserError(f"no key {key}; it is now {in_section(new) if new.startswith(f'{section}.') else new}")
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    siblings = {str(sibling) for sibling in (*(node or ()), *known) if sibling != name}
    if "/" in name:  # a group within a group, such as model/loss
        groups = [group for group in resources.files("arnn_lightning.conf").iterdir() if group.is_dir()]
        siblings |= {f"{group.name}/{part.name}" for group in groups for part in group.iterdir() if part.is_dir()}
    suggestions = _deeper(config, parent, name)
    if not suggestions:
        matches = difflib.get_close_matches(name, sorted(siblings), n=1)
        suggestions = [f"{parent}.{match}".lstrip(".") for match in matches]
    if not suggestions:  # the right name at another depth
        depths = {rule.rpartition(".")[2]: in_section(rule) for rule in RULES if rule.startswith(f"{section}.")}
        similar = [depths[match] for match in difflib.get_close_matches(name, depths, n=1)]
        similar += [f"{section}.{role}.{rest}" for role in ENCODERS]  # of the part, not of the whole
        suggestions = [other for other in similar if OmegaConf.select(config, other) is not None][:1]
    hint = "".join(f"; did you mean {suggestion}?" for suggestion in suggestions if suggestion != key)
    tasks = [] if parent else (resources.files("arnn_lightning.conf") / "task").iterdir()
    for task in tasks:
        if task.name.endswith(".yaml") and key in set(OmegaConf.create(task.read_text())):
            hint = f"; it belongs to task={task.name.removesuffix('.yaml')}"
    if section == "data" and config.data.get(rest.partition(".")[0]) is None:
        tabular = OmegaConf.create((resources.files("arnn_lightning.conf") / "data" / "tabular.yaml").read_text())
        if rest.partition(".")[0] in [*tabular]:
            hint = "; it belongs to data=tabular"
    if canonical(parent) in COLUMNS:  # Hydra merges mappings, and adds keys only with a +
        hint += f"; +{key}=... adds it" + "".join(f", ~{parent}.{other!s} removes {other!s}" for other in node or ())
    elif parent in OPEN_SECTIONS and not hint:
        hint = f"; +{key}=... adds it"
    return UserError(f"no key {key}{hint}")


def _deeper(config: DictConfig, parent: str, name: str) -> list[str]:
    """The nearest other key with this name below ``parent``, or below the nearest section above it that exists."""
    wanted = f"{parent}.{name}"
    while parent and not OmegaConf.is_dict(OmegaConf.select(config, parent)):
        parent = parent.rpartition(".")[0]
    level = [parent] if parent else []
    while level:
        keys = [f"{section}.{key}" for section in level for key in OmegaConf.select(config, section)]
        if found := [key for key in keys if key.rpartition(".")[2] == name and key != wanted]:
            return found[:1]
        level = [key for key in keys if OmegaConf.is_dict(OmegaConf.select(config, key))]
    return []


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


def _instantiated(node: DictConfig, key: str = "") -> Iterator[tuple[str, Any]]:
    """The settings that must have a ``_target_``: key, value."""
    for name, value in node.items_ex(resolve=False):
        path = f"{key}.{name!s}".lstrip(".")
        is_entry = key in ("baselines", "callbacks", "logger")
        if is_entry or (canonical(path) in INSTANTIATED and value is not None and not value._is_none()):
            yield path, value
        if isinstance(value, DictConfig) and path != "hydra" and not value._is_none() and not value._is_interpolation():
            yield from _instantiated(value, path)


def _settings(node: DictConfig, key: str = "", owner: str = OWN) -> Iterator[tuple[bool, str, Any, str]]:
    """(whether it is a reference, key, plain value, ``_target_`` that owns it) of all but the free mappings."""
    owner = _owner(node, key, owner)
    for name in node:
        path = f"{key}.{name!s}".lstrip(".")
        if path == "hydra" or str(name).startswith("_") or OmegaConf.is_missing(node, name):
            continue
        try:
            value = node[name]
        except OmegaConfBaseException:  # an interpolation of a value that is still to be set
            continue
        if isinstance(value, DictConfig) and key not in COLUMNS:
            if canonical(path) not in FREE:
                yield from _settings(value, path, owner)
        else:
            plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            yield OmegaConf.is_interpolation(node, str(name)), path, plain, owner


def _owner(node: DictConfig, key: str, inherited: str) -> str:
    if key == "data":  # a data set's keys are read by its reader
        return str(OmegaConf.select(node, "reader._target_", default=OWN))
    if not key:  # a task's keys are at the top level
        return str(OmegaConf.select(node, "task._target_", default=OWN))
    return str(node.get("_target_", OWN if key in SECTIONS else inherited))


def _is_own(target: str) -> bool:
    return target.startswith(OWN)


def _is_foreign(target: str) -> bool:
    return not target.startswith((OWN, "torch.", "pytorch_lightning."))


def _wrong_value(key: str, value: Any, rule: Rule) -> UserError:
    whole = isinstance(value, float) and value.is_integer() and rule.accepts(int(value))
    hint = f" (write {int(value)})" if whole else ""
    if isinstance(value, dict):  # Hydra splits a key at its dots
        hint = "; a name with a dot is set in braces, as in {visitor.age: 5}"
    return UserError(f"{key}={_show(value)}: must be {rule.allowed}{hint}")


def _not_a_setting(config: DictConfig, key: str, name: str, value: Any) -> UserError:
    if any(rule.startswith(f"{name}.") for rule in (*RULES, *FREE)) or name in FREE:
        choose = (
            f"choose a config with {key.replace('.', '/')}={value}" if name in ("model.optimizer", "model.loss") else ""
        )
        return UserError(f"{key}={_show(value)}: must be a mapping; {choose or f'set its keys, as in {key}.KEY=VALUE'}")
    return no_key(key, config)


def _check_overrides(config: DictConfig, overrides: Sequence[str], groups: set[str]) -> None:
    """``+key`` where nothing reads it; ``~key`` where the package reads it; ``key={}``, which has no effect."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element().lstrip("+~")
        if key in groups or override.key_or_group in groups:
            continue
        name, owner = canonical(key), _owner_of(config, key)
        node = OmegaConf.select(config, key)
        # Hydra merges mappings. The settings of a resumed run are not changed.
        if override.value() == {} and isinstance(node, DictConfig) and node and not config.get("resume"):
            parts = " ".join(f"~{key}.{part!s}" for part in node)
            raise UserError(f"{key}={{}}: changes nothing; remove what you do not want, as in {parts}")
        if override.is_delete() and _is_own(owner if not key.startswith("trainer.") else OWN):
            is_section = any(rule.startswith(f"{name}.") for rule in RULES)
            if name in RULES or (is_section and name not in FREE and not re.fullmatch(r"baselines\.[^.]+", key)):
                raise UserError(f"~{key}: is required; set it to another value")
        if override.is_add() or override.is_force_add():
            free = name in COLUMNS or any(name.startswith(f"{mapping}.") for mapping in (*FREE, *COLUMNS))
            if not free and _is_own(owner):
                is_set = name in FREE or (override.is_force_add() and name in RULES)  # "+" is Hydra's error
                raise UserError(f"+{key}: leave out the +") if is_set else no_key(key, config)


def _owner_of(config: DictConfig, key: str) -> str:
    """The ``_target_`` that the mapping of ``key`` belongs to."""
    owner, node = OWN, config
    for depth, part in enumerate(("", *key.split(".")[:-1])):
        node = node.get(part) if part and isinstance(node, DictConfig) else node
        if isinstance(node, DictConfig):
            owner = _owner(node, ".".join(key.split(".")[:depth]), owner)
    return owner


def _check_trainer_key(key: str, config: DictConfig) -> None:
    name = key.split(".")[1]
    if name in RESERVED:
        raise UserError(f"{key}: cannot be set; {RESERVED[name]}")
    if key == "trainer.profiler" and isinstance(value := config.trainer.profiler, str):
        advice = (
            "'+trainer.profiler={_target_: pytorch_lightning.profilers.SimpleProfiler, dirpath: ., filename: profile}'"
        )
        raise UserError(f"{key}={value}: its report would be in no file; name one, as in {advice}")
    if config.trainer.get("_target_") == "pytorch_lightning.Trainer":
        # Read, not imported: a mistake costs no import of torch.
        (package,) = getattr(find_spec("pytorch_lightning"), "submodule_search_locations", None) or ("",)
        tree = ast.parse((Path(package) / "trainer" / "trainer.py").read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Trainer"]
        known = [
            argument.arg
            for node in classes[0].body
            if isinstance(node, ast.FunctionDef) and node.name == "__init__"
            for argument in (*node.args.args[1:], *node.args.kwonlyargs)
        ]
        if name not in known:
            raise no_key(f"trainer.{name}", config, known)


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


def _show(value: Any) -> str:
    """A value as the command line has it.

    >>> _show(None), _show(True), _show([1, "a"])
    ('null', 'true', '[1,a]')
    """
    if isinstance(value, list):
        return f"[{','.join(map(_show, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
