"""The rules of all settings, what a mistake on the command line says, and settings without effect."""

import re
from typing import Any

import pytest

from arnn_lightning.cli import check, composition_error
from arnn_lightning.config.schema import RENAMED, RULES
from arnn_lightning.errors import UserError
from helpers import CONF, GROUPS, compose_config

# Groups whose configs are checked together, and a model or task that has them.
CHOSEN_TOGETHER: dict[tuple[str, ...], list[str]] = {
    ("model", "data", "logger", "trainer", "callbacks", "published"): [],
    ("model/loss", "model/optimizer"): ["model=gru4rec"],
    ("schema",): ["task=generate"],
    ("task",): [],
    ("experiment",): [],
}


def error(*overrides: str) -> str:
    """The line of a command with these overrides that ends it as an error; empty where it would run."""
    try:
        config = compose_config(*overrides, with_hydra=True)
    except Exception as problem:
        return composition_error(problem) or f"a defect: {problem}"
    try:
        check(config, config.hydra)
    except UserError as problem:
        return str(problem)
    return ""


@pytest.mark.parametrize("many", ["hydra.mode=MULTIRUN", "task=tune", "task=verdict"])
def test_many_runs_are_not_one_run_of_weights_and_biases(many: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    assert error(many, "logger=wandb").startswith("WANDB_RUN_ID: would merge all runs into one; unset it, or choose")
    assert error(many, "logger=csv") == error("logger=wandb") == ""


def test_every_group_is_checked() -> None:
    checked = [group for groups in CHOSEN_TOGETHER for group in groups]
    assert sorted(checked) == sorted(GROUPS - {"paper", "tuned", "search"})


@pytest.mark.parametrize("groups", CHOSEN_TOGETHER, ids="+".join)
def test_every_key_of_every_yaml_passes_the_schema(groups: tuple[str, ...]) -> None:
    names = [[f.stem for f in sorted((CONF / group).glob("*.yaml")) if not f.stem.startswith("_")] for group in groups]
    for number in range(max(map(len, names))):
        chosen = [f"{group}={of_group[number % len(of_group)]}" for group, of_group in zip(groups, names, strict=True)]
        line = error(*CHOSEN_TOGETHER[groups], *chosen)
        assert line == "" or line.endswith("is required; set it on the command line"), chosen


@pytest.mark.parametrize("value", [None, True, 3, 1.5, "x", [], ["UTC"], [[1], {}], {}, {"a": [1]}], ids=repr)
def test_every_rule_decides_on_values_of_every_type(value: Any) -> None:
    assert {type(rule.accepts(value)) for rule in RULES.values()} == {bool}


def test_a_key_without_a_rule_fails_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, "evaluation.ties")
    assert error() == "no key evaluation.ties"


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("model.epochs=two", "an integer of at least 1"),
        ("model.epochs=0", "an integer of at least 1"),
        ("model.epochs=-1", "an integer of at least 1"),
        ("model.epochs=true", "an integer of at least 1"),
        ("model.hidden_size=0", "an integer of at least 1"),
        ("model.optimizer.lr=fast", "a number of at least 0"),
        ("model.optimizer.lr=nan", "a number of at least 0"),
        ("model.session.dropout_hidden=1.5", "a number in [0, 1)"),
        ("model.batch_size=1.5", "an integer of at least 1"),
        ("model.patience=soon", "an integer of at least 0, or null"),
        ("model.negatives=some", "one of global, local"),
        ("model.session.embedding=hot", "one of onehot, separate, tied"),
        ("model.context.product_method=fast", "one of auto, gram, closed"),
        ("model.loss.activation=relu", "one of softmax, tanh, linear, elu"),
        ("model.freeze_encoders=yes please", "true or false"),
        ("baselines.itemknn.neighbours=0", "an integer of at least 1"),
        ("seed=abc", "an integer between 0 and 4294967295"),
        ("seed=-1", "an integer between 0 and 4294967295"),
        ("resume=maybe", "true or false"),
        ("evaluation.cutoffs=20", "a list of integers of at least 1, as in [5,10,20]"),
        ("evaluation.cutoffs=[]", "a list of integers of at least 1, as in [5,10,20]"),
        ("evaluation.ties=luck", "one of conservative, standard, median"),
        ("evaluation.bootstrap.unit=foo", "one of user, session"),
        ("evaluation.bootstrap.confidence=95", "a number in (0, 1)"),
        ("trainer.precision=16", "one of 32-true, bf16-mixed"),
        ("trainer.devices=0", "an integer of at least 1, or -1 or auto, or a list of device indices, as in [0,1]"),
        ("trainer.max_epochs=0", "an integer of at least 1, or null"),
        ("performance.steps_per_execution=0", "an integer of at least 1"),
        ("performance.compile=1", "true or false"),
        ("data.contexts.assignment=lots", "one of own, permuted, per_session, unknown"),
        ("data.contexts.single=region", "a list of names, as in [country,age]"),
        ("data.split.test_days=1.5", "an integer of at least 0"),
        ("data.window_days=0", "an integer of at least 1, or null"),
        ("data.gap=1x", "a duration such as 90s, 30m, 1h or 1d, or a number of seconds, or null"),
        ("data.gap=999999999d", "a duration such as 90s, 30m, 1h or 1d"),
        (f"data.items.most_popular={10**20}", "an integer of at least 1"),
        ("data.name=a/b", "letters, digits, _, . and -, and must not start with ., since it names folders"),
        ("data.name=..", "letters, digits, _, . and -, and must not start with ., since it names folders"),
        ("data.timezone=[UTC]", "a time zone such as Europe/Berlin"),
        ("data.context_strength=3", "a number in [0, 1]"),
        ("data.generate.noise_rate=much", "a number of at least 0"),
        ("model.optimizer.lr=inf", "a number of at least 0"),
        ("model.epochs=null", "an integer of at least 1"),
        ("model.epochs=[1,2]", "an integer of at least 1"),
        ("model.hidden_size=10**9", "an integer of at least 1"),
        ("model.name=null", "a string"),
        ("model.clip_norm=0", "a number above 0, or null"),
        ("model.scheduler=3", "a mapping; set its keys"),
        ("model.scheduler_interval=day", "one of epoch, step"),
        ("model.loss.logq=2", "a number in [0, 1]"),
        ("model.loss.candidates=some", "one of batch, all"),
        ("model.loss=null", "a mapping"),
        ("model.dims=3", "a mapping"),
        ("model.session=null", "a mapping"),
        ("model.context.batch_size=0", "an integer of at least 1"),
        ("baselines.itemknn=null", "a mapping"),
        ("evaluation.metrics=recall", "a list of metrics, as in [recall,mrr]"),
        ("evaluation.monitor=mrr@0", "a metric such as mrr@20"),
        ("evaluation.cutoffs=[5,x]", "a list of integers of at least 1"),
        ("evaluation.batch_size=null", "an integer of at least 1"),
        ("performance.threads=0", "an integer of at least 1, or null"),
        ("performance.cache_mb=-1", "a number of at least 0"),
        ("trainer.accelerator=abacus", "one of cpu, gpu"),
        ("trainer.max_steps=-2", "an integer of at least -1"),
        ("trainer.deterministic=maybe", "true or false, or warn"),
        ("paths.data=null", "a string"),
        ("pretrained.session=3", "a string, or null"),
        ("trusted_modules=[a-b]", "a list of module names, as in [mypackage]"),
        ("checkpoint.every_n_minutes=0", "a number above 0"),
        ("data.gap=0m", "a duration such as 90s, 30m"),
        ("data.split=null", "a mapping"),
        ("data.session=week", "one of gap, day, given"),
        ("data.reader=null", "a mapping"),
        ("data.items.min_events=0", "an integer of at least 1"),
        ("data.contexts.coverage=0", "a number in (0, 1]"),
        ("data.held_out_user_share=1", "a number in [0, 1)"),
        ("data.raw_dir=3", "a string, or null"),
    ],
)
def test_a_wrong_value_names_key_value_and_what_is_allowed(override: str, allowed: str) -> None:
    assert error(override).startswith(f"{override}: must be {allowed}")


def test_a_float_for_an_integer_is_written_out() -> None:
    assert error("data.generate.events=5e6").endswith("must be an integer of at least 1 (write 5000000)")
    assert "write" not in error("model.batch_size=1.5")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("data.items.min_count=3", "no key data.items.min_count; did you mean data.items.min_events?"),
        ("+data.items.min_count=3", "no key data.items.min_count; did you mean data.items.min_events?"),
        ("++data.items.min_count=3", "no key data.items.min_count; did you mean data.items.min_events?"),
        ("model.session.lr=.1", "no key model.session.lr; did you mean model.session.optimizer.lr?"),
        ("model=pnn model.dropout_hidden=.1", "no key model.dropout_hidden; did you mean model.dropout?"),
        ("+data.time_format=iso", "no key data.time_format"),
        ("+verbose=true", "no key verbose"),
        (
            "+trainer.limit_train_batchs=1",
            "no key trainer.limit_train_batchs; did you mean trainer.limit_train_batches?",
        ),
        ("data.columns=3", "no key data.columns"),
        ("data=xing data.context_strength=0.5", "no key data.context_strength"),
        ("model=pnn model.layers=2", "no key model.layers"),
        ("model=itemknn model.epochs=2", "no key model.epochs"),
        ("model=gru4rec model/optimizer=adam model.optimizer.momentum=0.9", "no key model.optimizer.momentum"),
        (
            "data=tabular data.events=a.csv data.columns.usr=x",
            "no key data.columns.usr; did you mean data.columns.user?",
        ),
        ("task=report runs=a report.cutoff=[1]", "no key report.cutoff; did you mean report.cutoffs?"),
        ("task=tune trial=3", "no key trial; did you mean trials?"),
        ("trials=3", "no key trials; it belongs to task=tune"),
        ("callbacks.norms._target_=norms.Norms", "no key callbacks.norms; +callbacks.norms=... adds it"),
        ("runs=multirun", "no key runs; it belongs to task=report"),
    ],
)
def test_a_key_that_nothing_reads_is_refused(overrides: str, message: str) -> None:
    assert error(*overrides.split()).startswith(message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("+trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch=0: must be an integer of at least 1"),
        ("model.optimizer=adam", "model.optimizer=adam: must be a mapping; choose a config with model/optimizer=adam"),
        ("evaluation.bootstrap=false", "evaluation.bootstrap=false: must be a mapping"),
        ("model=gru4rec model._target_=mine.Model model.dims=3", "model.dims=3: must be a mapping"),
        ("baselines=[]", "baselines=[]: must be a mapping; set its keys, as in baselines.KEY=VALUE; to leave out"),
        ("model.hidden_size", "model.hidden_size: must be KEY=VALUE"),
        ("evaluation.metrics=[recal]", '"recal@5" is not a metric (did you mean "recall"?)'),
        ("evaluation.metrics=[coverage]", "evaluation.metrics=[coverage]: must contain one of recall, mrr, ndcg"),
        ("evaluation.monitor=gini@20", "gini@20 is a metric of lists"),
        ("evaluation.monitor=map@20", '"map@20" is not a metric; known: recall@K'),
        (
            "model=gru4rec model/optimizer=adam model.optimizer.betas=[0.9]",
            "model.optimizer.betas=[0.9]: must be a list",
        ),
        ("model=itemknn model.alpha=2", "model.alpha=2: must be a number in [0, 1]"),
        ("trainer.devices=[0,1]", "trainer.devices=[0,1]: on a CPU, set a number of processes, such as 1"),
        ("trainer=ddp trainer.num_nodes=0", "trainer.num_nodes=0: must be an integer of at least 1"),
        (
            "trainer=ddp trainer.strategy.timeout_minutes=x",
            "trainer.strategy.timeout_minutes=x: must be a number above 0",
        ),
        ("data=tabular data.events=[]", "data.events=[]: must be a string, or a list of strings"),
        ('data=tabular data.events=a.csv data.quote="§"', "data.quote=§: must be one ASCII character, or null"),
        ("data=tabular data.events=a.csv data.years=[2030,1990]", "data.years=[2030,1990]: must be two years, the"),
        ("data=tabular data.events=a.csv data.years=[1990,2000,2030]", "data.years=[1990,2000,2030]: must be two"),
        ("data=tabular data.events=a.csv data.columns=[a]", "data.columns=[a]: must be a mapping; set its keys"),
        ("task=prepare data.min_session_length=1", "data.min_session_length=1: must be an integer of at least 2"),
        ("task=generate output=x events=many", "events=many: must be an integer of at least 1"),
        ("task=generate output=x schema.zipf=nan", "schema.zipf=nan: must be a number of at least 0"),
        ("task=generate output=3", "output=3: must be a string"),
        ("task=evaluate checkpoint=[a,b]", "checkpoint=[a,b]: must be a string"),
        ("task=evaluate checkpoint=null", "checkpoint=null: must be a string"),
        ("task=report runs=3", "runs=3: must be a string, or a list of strings"),
        ("task=report runs=a report.metrics=[recal@20]", '"recal@20" is not a metric'),
        ("task=tune trials=-1", "trials=-1: must be an integer of at least 0"),
        ("task=tune models=gru4rec", "models=gru4rec: must be a list of models"),
        ("task=tune sampler=null", "sampler=null: must be a mapping"),
    ],
)
def test_a_wrong_value_of_a_mapping_or_task_is_refused(overrides: str, message: str) -> None:
    assert error(*overrides.split()).startswith(message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("++seed=3", "+seed: leave out the +"),
        ("+trainer.callbacks=[]", "trainer.callbacks: cannot be set; add callbacks"),
        ("+trainer.profiler=simple", "trainer.profiler=simple: its report would be in no file; name one, as in"),
        ("+trainer.gradient_clip_val=1", "trainer.gradient_clip_val: cannot be set; set model.clip_norm"),
        ("+trainer.limit_test_batches=1", "trainer.limit_test_batches: cannot be set; metrics need every prediction"),
        ("+trainer.limit_val_batches=0", "trainer.limit_val_batches: cannot be set; metrics need every prediction"),
        ("+trainer.plugins=foo", "trainer.plugins: cannot be set; the package has its own"),
        ("+trainer.sync_batchnorm=true", "trainer.sync_batchnorm: cannot be set; batch norms already use"),
        ("+trainer.fast_dev_run=true", "trainer.fast_dev_run: cannot be set; set trainer.max_epochs=1"),
        ("+trainer.overfit_batches=1", "trainer.overfit_batches: cannot be set; set +trainer.limit_train_batches=1"),
        ("model=gru4rek", 'no model gru4rek (did you mean "gru4rec"?)'),
        ("~logger", "logger is required; logger=none logs nothing"),
        ("logger=null", "a config group cannot be null"),
        ("~baselines", "baselines is required; to leave out baselines, remove each, as in ~baselines.pop"),
        ("~performance.threads", "~performance.threads: is required"),
        ("hydra/launcher=nowhere", "no hydra/launcher nowhere"),
        (
            "hydra/job_logging=stdout",
            "hydra/job_logging=stdout: has no log file; choose default (to log to the console",
        ),
        ("hydra.output_subdir=.hydra", "hydra.output_subdir=.hydra: cannot be set"),
        (
            "hydra.job.chdir=true",
            "hydra.job.chdir=true: cannot be set; relative paths refer to the folder of the command",
        ),
        ("model=gru4rec pretrained.session=a.ckpt", "pretrained.session=a.ckpt: model gru4rec has no session encoder"),
        ("model=null", "a config group cannot be null"),
        ("model/loss=null", "a config group cannot be null"),
        (
            "model/optimizer=foo",
            "no model/optimizer foo; choose one of adagrad, adam, adamw, sgd, "
            "or add arnn_conf/model/optimizer/foo.yaml",
        ),
        ("model=itemknn model/loss=top1", "Could not override 'model/loss'. The chosen configs have no such group."),
        (
            "model@model.sesion=gru4rec",
            "Could not override 'model@model.sesion'. Did you mean to override one of model,",
        ),
        ("~data", "data is required; choose one with data=NAME"),
        ("~seed", "seed is required"),
        ("~task", "task is required"),
        ("~model.hidden_size", "~model.hidden_size: is required"),
        ("~data.contexts", "~data.contexts: is required"),
        ("data.contexts={}", "data.contexts={}: changes nothing; remove what you do not want, as in ~data.contexts."),
        ("model._target_=null", "model: needs a _target_"),
        ("~baselines.pop.dims", "baselines.pop: needs dims, the sizes of the data"),
        ("model.scheduler={T_max:3}", "model.scheduler: needs a _target_"),
        ("model.scheduler={_target_:torch.optim.lr_scheduler.StepLR}", "model.scheduler: needs _partial_: true"),
        ("+callbacks.x=1", "callbacks.x: needs a _target_"),
        ("checkpoint=a.ckpt", "checkpoint=a.ckpt: task=train reads none"),
        ("data.events=clicks.csv", "no key data.events; it belongs to data=tabular"),
        ("data.columns.user=uid", "no key data.columns; it belongs to data=tabular"),
        ("model.name=a=b", "model.name=a=b: the value cannot be parsed; quote special characters"),
        ("model.clip_norm=choice(null,1.0)", "model.clip_norm=choice(null,1.0): choice takes no null; list the values"),
        ("task=prepare data=synthetc", 'no data synthetc (did you mean "synthetic"?)'),
        (
            "task=generate output=x schema=foo",
            "no schema foo; choose one of tmall, xing, or add arnn_conf/schema/foo.yaml",
        ),
        ("model=gru4rec +model.scheduler={_partial_:true}", "+model.scheduler: leave out the +"),
        ("task=trian", 'no task trian (did you mean "train"?)'),
    ],
)
def test_a_command_line_that_cannot_be_used_is_one_line(overrides: str, message: str) -> None:
    assert error(*overrides.split()).startswith(message)


@pytest.mark.parametrize("mapping", ["data.contexts.numeric", "data.item_contexts.numeric", "data.where"])
def test_columns_are_added_to_a_mapping_by_a_plus(mapping: str) -> None:
    tabular = ["data=tabular", "data.events=a.csv", "data.titles=b.csv", "data.users=c.csv"]
    assert error(*tabular, f"{mapping}={{age: 5}}", f"+{mapping}.born=5") == ""
    assert error(*tabular, f"++{mapping}={{age: 5}}") == ""
    assert error(*tabular, f"{mapping}={{age: 5}}", f"{mapping}={{born: 5}}") == (
        f"no key {mapping}.born; +{mapping}.born=... adds it, ~{mapping}.age removes age"
    )


@pytest.mark.parametrize("mapping", ["data.contexts.numeric", "data.item_contexts.numeric"])
def test_names_of_columns_may_contain_dots(mapping: str) -> None:
    tabular = ["data=tabular", "data.events=a.csv", "data.titles=b.csv", "data.users=c.csv"]
    assert error(*tabular, f"{mapping}={{visitor.age: 5, visitor.device.price: [1, 2]}}") == ""
    assert error(*tabular, f"{mapping}={{visitor.age: 1}}").startswith(
        f"{mapping}.visitor.age=1: must be an integer of"
    )
    message = error(*tabular, f"+{mapping}.visitor.age=5")
    assert message.startswith(f"{mapping}.visitor={{'age': 5}}: must be an integer of at least 2, or edges")
    assert message.endswith("a name with a dot is set in braces, as in {visitor.age: 5}")


@pytest.mark.parametrize("zone", ["localtime", "Factory", "Europe/Berln"])
def test_a_zone_that_polars_does_not_know_is_refused(zone: str) -> None:
    message = error("data=tabular", "data.events=a.csv", f"data.timezone={zone}")
    assert message == f"data.timezone={zone}: must be a time zone such as Europe/Berlin"


@pytest.mark.parametrize("old", RENAMED)
def test_a_key_of_version_0_1_0_names_the_new_one(old: str) -> None:
    task = {"schema": ["task=generate", "output=x"]}.get(old.partition(".")[0], [])
    assert error(*task, f"{'' if old.startswith('logger') else '++'}{old}=1").startswith(
        f"no key {old}; it is now {RENAMED[old]}"
    )


def test_a_renamed_key_of_an_encoder_names_the_encoders_key() -> None:
    assert error("model.session.lanes=3") == "no key model.session.lanes; it is now model.session.batch_size"
    assert error("model/los=top1") == "no key model/los; did you mean model/loss?"
    assert error("data.generate.stray=.1") == "no key data.generate.stray; it is now data.generate.noise_rate"


NO_EFFECT = [
    ("model.dims.n_items=3", "it is derived from the data"),
    ("model=gru4rec ~tuned@model model.sample_alpha=0.5", "n_sample is 0"),
    ("model=gru4rec model/loss=cross_entropy_full model.n_sample=3", "the loss scores all items"),
    ("model=gru4rec model/loss=cross_entropy_full model.loss.accidental_hits=keep", "the loss scores all items"),
    ("model.negatives=local", "there is one device"),
    ("model.session.loss.elu_alpha=0.3", "activation is not elu"),
    ("model.patience=2 data.split.val_days=0", "there is no validation split"),
    ("model.session.patience=2 data=xing", "there is no validation split"),
    ("evaluation.monitor=ndcg@20 data=tmall", "there is no validation split"),
    ("model.scheduler_interval=step", "there is no scheduler"),
    ("model.finetune_context_batchnorm=true model.freeze_encoders=false", "no encoder is frozen"),
    ("model=pnn model.product_method=gram model.products=false", "products is false"),
    ("model=gru4rec model.carry_dropout=true model.dropout_hidden=0", "dropout_hidden is 0"),
    ("model.session.dropout_embedding=0.1", "embedding=onehot has no embedding"),
    ("+model@baselines.gru=gru4rec baselines.gru.dropout_embedding=0.1", "embedding=onehot has no embedding"),
    ("model.session.epochs=2 pretrained.session=a.ckpt", "this encoder is pretrained"),
    ("model.context.optimizer.lr=2 pretrained.context=a.ckpt", "this encoder is pretrained"),
    ("model=gru4rec performance.cache_mb=3", "no encoder is frozen"),
    ("model.freeze_encoders=false performance.cache_mb=3", "no encoder is frozen"),
    ("model=pop trainer.max_steps=3", "the model has no optimizer"),
    ("model=pop checkpoint.every_n_minutes=3", "the model has no optimizer"),
    ("model=itemknn performance.compile=true", "the model has no optimizer"),
    ("data.gap=3h data.session=day", "data.session is not gap"),
    ("data=tabular data.events=a.csv data.gap=3h data.session=given", "data.session is not gap"),
    ("data=completejourney data.gap=3h", "data.session is not gap"),
    ("data=tabular data.events=a.csv data.columns.session=x", "data.session is not given"),
    ("data=tabular data.events=a.csv data.columns.user_in_users=x", "there is no table data.users"),
    ("data=tabular data.events=a.csv data.columns.title=x", "there is no table data.titles"),
    ("data=tabular data.events=a.csv data.items.popularity_scope=log data.items.min_events=1", "all items are kept"),
    ("data=tabular data.events=a.csv data.list_separator=x", "there is no multi-valued attribute"),
    ("data=movielens data.contexts.coverage=0.5", "there is no multi-valued attribute"),
    ("model=gru4rec data.contexts.dropout=0.2", "the model reads no attributes of users"),
    ("model=pnn data.contexts.dropout=0.2 model.attribute_dropout=0.1", "model.attribute_dropout (command line"),
    ("data.raw_dir=x data.generate.events=3", "data.raw_dir is read"),
    ("task=generate output=x seed=3", "did you mean schema.seed?"),
    ("task=evaluate checkpoint=x data.gap=1h", "task=evaluate takes model and data from"),
    ("task=evaluate lists=x model.n_sample=9", "task=evaluate lists= has no model"),
    ("task=evaluate checkpoint=x model.n_sample=9", "task=evaluate takes model and data from"),
    ("task=report runs=a model=gru4rec", "task=report reads the runs' own settings"),
    ("task=tune model=gru4rec model.dropout_embedding=0.1", "embedding=onehot has no embedding"),
]


TABULAR = "data=tabular data.events=a.csv"


@pytest.mark.parametrize(("overrides", "reason"), NO_EFFECT)
def test_a_setting_without_effect_is_refused(overrides: str, reason: str) -> None:
    assert re.search(rf" has no effect: .*{re.escape(reason)}", error(*overrides.split()))


@pytest.mark.parametrize(
    "overrides",
    [
        "data=xing",  # values of YAMLs are no settings of the user
        "model=gru4rec model.dropout_embedding=0 model.patience=null",  # turns off what is off
        "model=gru4rec model.patience=null data.split.val_days=0",
        "model=gru4rec model.embedding=separate model.dropout_embedding=0.1",
        "model=gru4rec trainer=ddp model.negatives=local",
        "model.patience=2",
        "model.session.loss.activation=elu model.session.loss.elu_alpha=0.3 performance.cache_mb=3",
        "model.finetune_context_batchnorm=true",
        "model=pnn model.product_method=gram data.contexts.dropout=0.2",
        "model=gru4rec model.carry_dropout=true model.dropout_hidden=0.2 trainer.max_steps=3",
        "model=gru4rec ~tuned@model model.n_sample=9 model.sample_alpha=0.5",
        f"{TABULAR} data.gap=3h data.users=b.csv data.columns.user_in_users=x data.titles=c.csv data.columns.title=y",
        f"{TABULAR} data.session=given data.columns.session=x",
        f"{TABULAR} data.items.popularity_scope=log data.items.min_events=2",
        f"{TABULAR} data.items.popularity_scope=log data.items.min_events=1 data.items.most_popular=9",
        f"{TABULAR} data.items.popularity_scope=log data.items.min_events=1 data.items.popularity_coverage=0.9",
        f"{TABULAR} data.contexts.multi=[tags] data.contexts.coverage=0.5 data.list_separator=x",
        f"{TABULAR} data.item_contexts.multi=[tags] data.item_contexts.coverage=0.5 data.list_separator=x",
        "model=gru4rec model.patience=2 data.split.val_days=0 data.split.val_share=0.1",
        "model=pop model._target_=mine.Model performance.compile=true",
        "pretrained.session=a.ckpt model.session.dropout_hidden=0.1 model.context.epochs=2",
        "model=init_state model.session.epochs=2 model.session.batch_size=9 pretrained.session=a.ckpt",
        "task=evaluate checkpoint=x data=tabular data.events=a.csv evaluation.groups=[age]",
        "task=evaluate checkpoint=x data.contexts.assignment=permuted",
        "task=evaluate checkpoint=x data.raw_dir=later",
        "task=evaluate lists=x seed=2",
        "task=report runs=a seed=2 evaluation.cutoffs=[10]",
        "task=prepare model=gru4rec model.epochs=3",  # said in a line, since it is added to commands of task=train
    ],
)
def test_a_setting_with_an_effect_is_not_refused(overrides: str) -> None:
    assert error(*overrides.split()) == ""


def test_what_a_preparation_does_not_read_is_said() -> None:
    config = compose_config("task=prepare", "evaluation.ties=median", "data.gap=3h", with_hydra=True)
    assert check(config, config.hydra) == [
        "evaluation.ties has no effect: task=prepare reads data, paths and id_tables only"
    ]


def test_a_schedule_on_the_loss_advances_after_epochs() -> None:
    schedule = "{_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, _partial_: true}"
    for key, overrides in (("model", ["model=gru4rec"]), ("model.session", [])):
        plateau = [*overrides, f"{key}.scheduler={schedule}"]
        assert error(*plateau) == ""
        assert error(*plateau, f"{key}.scheduler_interval=step").startswith(
            f"{key}.scheduler_interval=step: ReduceLROnPlateau needs an epoch's loss"
        )


@pytest.mark.parametrize(
    "overrides",
    [
        ["+trainer.limit_train_batches=1"],
        ["+logger.mine={_target_: mine.Logger, any: thing}"],
        ["+callbacks.mine={_target_: mine.Callback}"],
        ["model=gru4rec", "model/optimizer=adam", "+model.optimizer.amsgrad=true"],
        ["model=gru4rec", "model._target_=mine.Model", "model.hidden_size=[100,50]", "+model.heads=2"],
        ["model=gru4rec", "model.optimizer._target_=mine.Optimizer", "+model.optimizer.rho=0.9"],
        ["data.reader._target_=mine.Reader", "+data.encoding=utf-8"],
        ["task._target_=mine.run", "+mine=3"],
        ["+model@baselines.gru=gru4rec"],
        ["model=gru4rec", "model/optimizer=adam", "~model.optimizer.eps"],
    ],
)
def test_settings_of_foreign_targets_are_free(overrides: list[str]) -> None:
    assert error(*overrides) == ""


def test_training_keys_of_a_foreign_model_are_checked() -> None:
    assert "data.gap=x: must be" in error("data.reader._target_=mine.Reader", "data.gap=x")
    assert "model.epochs=x: must be" in error("model=gru4rec", "model._target_=mine.Model", "model.epochs=x")
