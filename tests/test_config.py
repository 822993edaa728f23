"""Every key, what it changes, what contradicts it, and the experiments."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from enum import EnumType
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from omegaconf import OmegaConf

from tests.support import toy
from textdistill.commands.distill import distill
from textdistill.config import RunConfig, compose, load_run_config
from textdistill.data.splits import Protocol
from textdistill.distilled.spec import AttentionLabelWeight, Init, LabelType
from textdistill.method.attention import AttentionLabelType
from textdistill.method.hypergradient import Estimator
from textdistill.training.config import OptimizerType, SelectBy

# Keys that the reference implementation does not have.
OURS = {
    "base.sweep",
    "data.path",
    "data.header",
    "data.encoding",
    "data.delimiter",
    "data.config_name",
    "data.text_columns",
    "data.label_column",
    "data.max_length",
    "data.protocol",
    "distilled_data.attention_label_weight",
    "distilled_data.init",
    "distilled_data.lr_for_parameter",
    "train.estimator",
    "train.max_steps",
    "train.val_steps",
    "train.select_by",
    "train.lr_lr_scales",
    "train.heads_per_step",
    "train.batches_per_step",
    "train.trajectory",
    "train.tf32",
    "train.inner_precision",
    "evaluate.tf32",
    "train.checkpoint_interval",
    "train.resume",
    "mlflow.tracking_uri",
    "mlflow.experiment_name",
    "tracking",
}


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


METHOD = "dpc_1.step_1.bsz_1.label_unrestricted.al_cls.lr_init_0.1.distill_lr_None"
# Every key of the reference implementation: a value that is not our default, and besides the key itself, what
# changes with it; or the key that replaces it where it is refused.
KEYS: dict[str, tuple[Any, dict[str, Any] | str]] = {
    "base.experiment_name": ("exp", {"base.save_method_dir": "./save/exp/METHOD"}),
    "base.method": ("m", {"base.save_method_dir": "./save/ag_news.minilm-l6/m"}),
    "base.run_name": ("r", {}),
    "base.save_dir_root": ("/r", {"base.save_method_dir": "/r/ag_news.minilm-l6/METHOD"}),
    "base.save_method_dir": ("/m", {}),
    "base.save_dir": ("/d", {"train.save_ckpt_dir": "/d/checkpoints"}),
    "base.data_dir_root": (
        "/data",
        {
            "data.datasets_path": "/data/ag_news/datasets",
            "data.preprocessed_datasets_path": "/data/ag_news/datasets_for_minilm-l6",
        },
    ),
    "base.seed": (7, {}),
    "data.task_name": (
        "sst2",
        {
            "model.task_name": "sst2",
            "evaluate.task_name": "sst2",
            "base.experiment_name": "sst2.minilm-l6",
            "data.datasets_path": "./data/sst2/datasets",
            "data.preprocessed_datasets_path": "./data/sst2/datasets_for_minilm-l6",
        },
    ),
    "data.datasets_path": ("/x", {}),
    "data.preprocessed_datasets_path": ("/x", {}),
    "data.train_batch_size": (8, {}),
    "data.valid_batch_size": (8, {}),
    "data.test_batch_size": (8, {}),
    "data.num_proc": (2, {}),
    "data.streaming": (True, {}),
    "data.force_preprocess": (True, {}),
    "model.task_name": ("sst2", "data.task_name"),
    "model.model_name": (
        "org/roberta",
        {
            "base.experiment_name": "ag_news.roberta",
            "data.preprocessed_datasets_path": "./data/ag_news/datasets_for_roberta",
        },
    ),
    "model.use_pretrained_model": (False, {}),
    "model.disable_dropout": (False, {}),
    "distilled_data.pretrained_data_path": ("/set", {}),
    "distilled_data.data_per_label": (3, {}),
    "distilled_data.attention_label_type": ("all", {}),
    "distilled_data.attention_loss_lambda": (2.0, {}),
    "distilled_data.seq_length": (32, {}),
    "distilled_data.label_type": ("soft", {}),
    "distilled_data.lr_for_step": (False, {}),
    "distilled_data.lr_init": (0.5, {}),
    "distilled_data.lr_linear_decay": (True, {}),
    "distilled_data.fix_order": (False, {}),
    "learner_train.train_step": (3, {"train.inner_loop": 3}),
    "learner_train.batch_size_per_label": (2, {}),
    "train.skip_train": (True, {}),
    "train.inner_loop": (3, "learner_train.train_step"),
    "train.epoch": (2, {}),
    "train.lr_inputs_embeds": (0.5, {}),
    "train.lr_attention_labels": (0.5, {}),
    "train.lr_labels": (0.5, {}),
    "train.lr_lr": (0.5, {}),
    "train.optimizer_type": ("momentum", {}),
    "train.scheduler_type": ("cosine", {}),
    "train.warmup_ratio": (0.5, {}),
    "train.adam_beta2": (0.95, {}),
    "train.weight_decay": (0.5, {}),
    "train.max_grad_norm": (0.5, {}),
    "train.val_interval": (2, {}),
    "train.log_interval": (5, {}),
    "train.n_eval_model": (2, {}),
    "train.save_ckpt_dir": ("/ckpt", {}),
    "train.fp16": (True, {}),
    "train.bf16": (True, {}),
    "evaluate.task_name": ("sst2", "data.task_name"),
    "evaluate.n_eval_model": (2, {}),
    "evaluate.fp16": (True, {}),
    "evaluate.bf16": (True, {}),
}
# These are part of the run's name.
IN_METHOD = {
    "distilled_data.data_per_label": "dpc_3.",
    "learner_train.train_step": ".step_3.",
    "learner_train.batch_size_per_label": ".bsz_2.",
    "distilled_data.label_type": ".label_soft.",
    "distilled_data.attention_label_type": ".al_all.",
    "distilled_data.lr_init": ".lr_init_0.5.",
    "train.lr_inputs_embeds": ".distill_lr_0.5",
}


def test_every_key_is_known() -> None:
    assert {key for key, _ in leaves(RunConfig())} == set(KEYS) | OURS


@pytest.mark.parametrize("key", KEYS)
def test_key_of_the_reference(key: str) -> None:
    value, effect = KEYS[key]
    if isinstance(effect, str):
        config = compose(f"{key}={value}")
        with pytest.raises(ValueError, match=rf"{key} must be {effect}=.*, got {value}; .*{effect}"):
            config.check()
        return
    default, config = dict(leaves(compose())), dict(leaves(compose(f"{key}={value}")))
    assert default[key] != value
    assert config[key] == value
    for name, expected in effect.items():
        assert default[name] != config[name]
        assert config[name] == (expected.replace("METHOD", METHOD) if isinstance(expected, str) else expected)
    assert IN_METHOD.get(key, "") in config["base.method"]
    # Nothing changes but the key, what it implies, and names with a time.
    changed = {name for name in config if config[name] != default[name]}
    assert changed - {name for name in config if name.startswith(("base.", "train.save_ckpt_dir"))} <= {key, *effect}


def test_names_follow_each_other() -> None:
    base = compose("base.method=m", "base.save_dir_root=/r", "base.experiment_name=e").base
    assert base.run_name.startswith("m.")
    assert base.save_dir.startswith("/r/e/m/")
    assert compose("base.save_method_dir=/m").base.save_dir.startswith("/m/")


def test_reference_experiment_has_the_references_figures() -> None:
    found = dict(leaves(compose("experiment=reference")))
    expected = {
        "data.train_batch_size": 32,
        "data.valid_batch_size": 256,
        "data.test_batch_size": 256,
        "data.protocol": Protocol.paper,
        "data.force_preprocess": False,
        "model.model_name": "bert-base-uncased",
        "model.use_pretrained_model": True,
        "model.disable_dropout": True,
        "distilled_data.pretrained_data_path": None,
        "distilled_data.data_per_label": 1,
        "distilled_data.attention_label_type": AttentionLabelType.none,
        "distilled_data.attention_label_weight": AttentionLabelWeight.equal,
        "distilled_data.attention_loss_lambda": 1.0,
        "distilled_data.seq_length": 512,
        "distilled_data.label_type": LabelType.hard,
        "distilled_data.lr_for_step": True,
        "distilled_data.lr_for_parameter": False,
        "distilled_data.lr_init": 1e-2,
        "distilled_data.lr_linear_decay": False,
        "distilled_data.fix_order": True,
        "distilled_data.init": Init.noise,
        "learner_train.train_step": 1,
        "learner_train.batch_size_per_label": 1,
        "train.skip_train": False,
        "train.inner_loop": 1,
        "train.epoch": 30,
        "train.max_steps": None,
        "train.lr_inputs_embeds": 1e-2,
        "train.lr_attention_labels": 1e-2,
        "train.lr_labels": 1e-2,
        "train.lr_lr": 1e-2,
        "train.optimizer_type": OptimizerType.adamw,
        "train.scheduler_type": "linear",
        "train.warmup_ratio": 0.1,
        "train.adam_beta2": 0.999,
        "train.weight_decay": 0.0,
        "train.max_grad_norm": 1.0,
        "train.val_interval": 1,
        "train.val_steps": None,
        "train.select_by": SelectBy.loss,
        "train.log_interval": -1,
        "train.n_eval_model": 20,
        "train.fp16": False,
        "train.bf16": False,
        "train.estimator": Estimator.reverse,
        "train.heads_per_step": 1,
        "evaluate.n_eval_model": 100,
        "evaluate.fp16": False,
        "evaluate.bf16": False,
    }
    assert {key: found[key] for key in expected} == expected
    follows = compose("experiment=reference", "train.lr_inputs_embeds=0.1", "train.lr_lr=0.5").train
    assert (follows.lr_attention_labels, follows.lr_labels, follows.lr_lr) == (0.1, 0.1, 0.5)


EXPERIMENT_DIR = Path(str(files("textdistill.conf.experiment")))
EXPERIMENTS = sorted(str(file.relative_to(EXPERIMENT_DIR).with_suffix("")) for file in EXPERIMENT_DIR.rglob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_runs(name: str, tiny_bert: Path, toy_data: Path, tmp_path: Path) -> None:
    settings = toy.overrides(tiny_bert, toy_data, tmp_path)
    result = distill(compose(f"experiment={name}", *settings, "train.epoch=1"))
    assert result.training is not None
    assert result.training.outer_steps == 2
    assert len(list(tmp_path.glob("**/results.json"))) == 1


# --- Contradictions, and settings without effect


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distilled_data.data_per_label=0"], r"distilled_data\.data_per_label must be at least 1, got 0"),
        (
            ["distilled_data.data_per_label=3", "learner_train.batch_size_per_label=2"],
            r"distilled_data\.data_per_label=3 must be divisible by learner_train\.batch_size_per_label=2 .*change",
        ),
        (
            ["distilled_data.attention_label_type=cls", "distilled_data.attention_loss_lambda=0"],
            r"distilled_data\.attention_loss_lambda must be above 0 and finite with attention labels \(cls\), got 0",
        ),
        (["train.epoch=0"], r"train\.epoch must be at least 1, got 0"),
        (["evaluate.n_eval_model=0"], r"evaluate\.n_eval_model must be at least 1, got 0"),
        (["learner_train.train_step=0"], r"learner_train\.train_step must be at least 1, got 0"),
    ],
)
def test_contradictions(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose(*overrides).check()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param(overrides, message, id=overrides[0])
        for overrides, message in (
            (
                ["distilled_data.lr_linear_decay=true"],
                "distilled_data.lr_linear_decay=true has no effect: distilled_data.lr_for_step=true",
            ),
            (
                ["train.lr_attention_labels=0.5", "distilled_data.attention_label_type=none"],
                "train.lr_attention_labels has no effect: distilled_data.attention_label_type=none",
            ),
            (
                ["train.lr_lr_scales=0.1", "distilled_data.lr_for_parameter=false"],
                "train.lr_lr_scales has no effect: distilled_data.lr_for_parameter=false",
            ),
            (
                ["train.lr_labels=0.5", "distilled_data.label_type=hard"],
                "train.lr_labels has no effect: distilled_data.label_type=hard",
            ),
            (
                ["train.optimizer_type=sgd", "train.adam_beta2=0.9"],
                "train.adam_beta2=0.9 has no effect: train.optimizer_type=sgd",
            ),
            (
                ["train.estimator=reverse", "train.trajectory=checkpoint"],
                "train.trajectory=checkpoint has no effect: train.estimator=reverse",
            ),
            (
                ["distilled_data.data_per_label=6", "learner_train.train_step=2"],
                "distilled_data.data_per_label=6 beyond 2 has no effect: learner_train.train_step=2 times"
                " learner_train.batch_size_per_label=1",
            ),
        )
    ],
)
def test_setting_without_effect_is_warned_of(
    overrides: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    compose(*overrides).check()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [message]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["experiment=reference"],
        ["distilled_data.lr_linear_decay=true", "distilled_data.lr_for_step=false"],
        ["train.lr_labels=0.5", "distilled_data.label_type=soft"],
        ["train.adam_beta2=0.9", "train.optimizer_type=adam"],
        ["train.optimizer_type=sgd"],
        ["train.lr_attention_labels=0.5", "distilled_data.attention_label_type=all"],
        ["distilled_data.data_per_label=6", "learner_train.train_step=3", "learner_train.batch_size_per_label=2"],
        ["distilled_data.data_per_label=6", "distilled_data.fix_order=false"],
    ],
)
def test_setting_with_effect_is_not_warned_of(overrides: list[str], caplog: pytest.LogCaptureFixture) -> None:
    compose(*overrides).check()
    assert caplog.records == []


@pytest.mark.parametrize("override", ["distilled_data.label_type=sharp", "train.epoch=many"])
def test_unknown_value(override: str) -> None:
    with pytest.raises(ValueError, match=f"cannot compose the configuration: .*{override.partition('=')[0]}"):
        compose(override)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("data.nonsense=1", "; textdistill distill --cfg job prints all keys"),
        ("trian.epochs=1", "; did you mean 'train.epoch'?"),
        ("evaluate.n_eval_modl=1", "; did you mean 'evaluate.n_eval_model' or 'train.n_eval_model'?"),
        ("n_eval-model=1", "; did you mean 'evaluate.n_eval_model' or 'train.n_eval_model'?"),
    ],
)
def test_unknown_key(override: str, hint: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(ValueError, match=re.escape(f"there is no key {key!r}{hint}") + "$"):
        compose(override)


# --- A run that goes on


# What may change; max_steps and epoch under a schedule without an end.
FREE = {
    *("base.experiment_name", "base.method", "base.run_name", "base.save_dir_root", "base.save_method_dir"),
    *("base.save_dir", "base.data_dir_root", "data.path", "data.datasets_path", "data.preprocessed_datasets_path"),
    *("data.num_proc", "data.streaming", "data.force_preprocess"),
    *("train.resume", "train.save_ckpt_dir", "train.checkpoint_interval"),
    *("train.log_interval", "train.val_interval", "train.val_steps", "train.trajectory", "tracking", "base.sweep"),
    *("mlflow.tracking_uri", "mlflow.experiment_name"),
}


def another(hint: Any, value: Any, name: str) -> Any:
    """A value of the type that is not ``value``."""
    kind = next(arg for arg in get_args(hint) if arg is not type(None)) if isinstance(hint, UnionType) else hint
    if get_origin(kind) is list:
        return ["a b", f"{name}: 'ü' #"]
    if isinstance(kind, EnumType):
        return next(member for member in kind if member is not value)
    if kind is bool:
        return not value
    if kind is int:
        return (value or 0) + 7
    return 1 / 3 if kind is float else f"{name}: 'ü' #"


def change(config: Any, only: str | None = None, prefix: str = "") -> None:
    """Changes every key, or one."""
    hints = get_type_hints(type(config))
    for name, value in vars(config).items():
        if is_dataclass(value):
            change(value, only, f"{prefix}{name}.")
        elif only in (None, f"{prefix}{name}"):
            setattr(config, name, another(hints[name], value, name))


def changed(*keys: str, **train: Any) -> RunConfig:
    config = RunConfig()
    for key, value in train.items():
        setattr(config.train, key, value)
    for key in keys:
        change(config, key)
    return config


def test_settings_that_may_change() -> None:
    keys = [key for key, _ in leaves(RunConfig())]
    assert all(dict(leaves(changed(key)))[key] != dict(leaves(RunConfig()))[key] for key in keys)
    assert {key for key in keys if changed(key).fixed() == RunConfig().fixed()} == FREE


@pytest.mark.parametrize(
    ("scheduler", "warmup", "free"),
    [
        ("linear", 0.0, False),
        ("cosine", 0.0, False),
        ("cosine_with_restarts", 0.0, False),
        ("polynomial", 0.0, False),
        ("constant", 0.1, True),
        ("constant_with_warmup", 0.1, False),
        ("constant_with_warmup", 0.0, True),
        ("inverse_sqrt", 0.1, False),
        ("inverse_sqrt", 0.0, True),
    ],
)
@pytest.mark.parametrize("key", ["train.max_steps", "train.epoch"])
def test_length_may_change_under_a_schedule_without_an_end(key: str, scheduler: str, warmup: float, free: bool) -> None:
    train = {"scheduler_type": scheduler, "warmup_ratio": warmup}
    assert (changed(key, **train).fixed() == changed(**train).fixed()) is free
    assert changed("train.lr_lr", **train).fixed() != changed(**train).fixed()


def test_epochs_may_change_beside_a_number_of_steps() -> None:
    """They have no effect there."""
    assert changed("train.epoch", max_steps=5).fixed() == changed(max_steps=5).fixed()
    assert changed("train.epoch").fixed() != RunConfig().fixed()


def save(config: RunConfig, folder: Path) -> None:
    folder.mkdir()
    OmegaConf.save(OmegaConf.structured(config), folder / "config.yaml")


@pytest.mark.parametrize("every_key", [False, True])
def test_saved_configuration_comes_back(every_key: bool, tmp_path: Path) -> None:
    config = RunConfig()
    if every_key:
        change(config)
        untouched = dict(leaves(RunConfig()))
        assert all(value != untouched[key] for key, value in leaves(config))
    save(config, tmp_path / "run")
    found = load_run_config(tmp_path / "run")
    expected = asdict(config)
    expected["base"]["save_dir"] = str(tmp_path / "run")
    if not every_key:
        expected["train"]["save_ckpt_dir"] = f"{tmp_path}/run/checkpoints"
    assert asdict(found) == expected
    assert [type(value) for _, value in leaves(found)] == [type(value) for _, value in leaves(config)]


def test_configuration_moves_with_its_folder(tmp_path: Path) -> None:
    for name, overrides in {"a": [], "b": [f"train.save_ckpt_dir={tmp_path}/elsewhere"]}.items():
        config = compose("data.task_name=sst2", f"base.save_dir={tmp_path}/{name}", *overrides)
        save(config, tmp_path / name)
        (tmp_path / name).rename(tmp_path / f"new {name}")
        found = load_run_config(tmp_path / f"new {name}")
        assert found.base.save_dir == f"{tmp_path}/new {name}"
        assert found.train.save_ckpt_dir == f"{tmp_path}/{'elsewhere' if overrides else 'new a/checkpoints'}"
        assert found.fixed() == config.fixed()


def test_configuration_of_an_earlier_version_lacks_later_keys_only(tmp_path: Path) -> None:
    save(RunConfig(), tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    tree = OmegaConf.load(path)
    del tree["mlflow"]
    OmegaConf.save(tree, path)
    assert load_run_config(tmp_path / "run").mlflow.tracking_uri is None
    del tree["train"]["epoch"]
    OmegaConf.save(tree, path)
    with pytest.raises(ValueError, match="keys are missing"):
        load_run_config(tmp_path / "run")


def test_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} must be a run folder with a config\.yaml; check"):
        load_run_config(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"train: [", b"\xff\xfe\x00", b"- a\n- b\n", b"words", b"train:\n  nonsense: 1\n", b"train:\n  epoch: many\n"],
    ids=["yaml", "binary", "list", "text", "key", "value"],
)
def test_file_that_is_no_configuration(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/config\.yaml must be the configuration of a run: "):
        load_run_config(tmp_path)
