"""The keyword settings of ``distill`` and the other functions, with their types.

Every key of the configuration has a setting of its name. A name that several groups have carries its group in front:
``train_n_eval_model`` is ``train.n_eval_model``. tests/test_settings.py writes this module.
"""

from __future__ import annotations

from os import PathLike
from typing import Literal, TypedDict

from textdistill.data.splits import Protocol
from textdistill.distilled.spec import AttentionLabelWeight, Init, LabelType
from textdistill.method.attention import AttentionLabelType
from textdistill.method.hypergradient import Estimator, Trajectory
from textdistill.runs.tracker import Tracking
from textdistill.training.config import InnerPrecision, OptimizerType, SelectBy


class Settings(TypedDict, total=False):
    """The settings by keyword. docs/migrating.md describes every key."""

    experiment: str
    base_experiment_name: str
    method: str
    run_name: str
    save_dir_root: str | PathLike[str]
    save_method_dir: str | PathLike[str]
    save_dir: str | PathLike[str]
    data_dir_root: str | PathLike[str]
    sweep: str
    seed: int
    task_name: str
    path: str | PathLike[str] | list[str] | None
    header: bool | None
    encoding: str | None
    delimiter: str | None
    config_name: str | None
    text_columns: list[str] | None
    label_column: str | None
    max_length: int
    protocol: Protocol | Literal["clean", "paper"]
    datasets_path: str | PathLike[str] | None
    preprocessed_datasets_path: str | PathLike[str] | None
    train_batch_size: int | None
    valid_batch_size: int
    test_batch_size: int
    num_proc: int
    streaming: bool
    force_preprocess: bool
    model_name: str
    use_pretrained_model: bool
    disable_dropout: bool
    pretrained_data_path: str | PathLike[str] | None
    data_per_label: int
    attention_label_type: AttentionLabelType | Literal["none", "cls", "all"]
    attention_label_weight: AttentionLabelWeight | Literal["equal", "learned"]
    attention_loss_lambda: float
    seq_length: int | None
    label_type: LabelType | Literal["hard", "soft", "unrestricted"]
    lr_for_step: bool
    lr_for_parameter: bool
    lr_init: float
    lr_linear_decay: bool
    fix_order: bool
    init: Init | Literal["noise", "real"]
    train_step: int
    batch_size_per_label: int
    skip_train: bool
    inner_loop: int
    epoch: int | None
    max_steps: int | None
    lr_inputs_embeds: float | None
    lr_attention_labels: float | None
    lr_labels: float | None
    lr_lr: float | None
    lr_lr_scales: float | None
    optimizer_type: OptimizerType | Literal["adamw", "adam", "sgd", "momentum"]
    adam_beta2: float
    scheduler_type: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float | None
    val_interval: int | None
    val_steps: int | None
    select_by: SelectBy | Literal["loss", "accuracy", "macro_f1", "balanced_accuracy", "mcc"]
    log_interval: int
    train_n_eval_model: int
    save_ckpt_dir: str | PathLike[str]
    train_fp16: bool
    train_bf16: bool | Literal["auto"]
    train_tf32: bool
    inner_precision: InnerPrecision | Literal["float32", "tf32", "bf16"]
    estimator: Estimator | Literal["difference", "forward", "reverse"]
    heads_per_step: int
    batches_per_step: int | None
    trajectory: Trajectory | Literal["keep", "offload", "checkpoint"]
    checkpoint_interval: int
    resume: bool
    evaluate_n_eval_model: int
    evaluate_fp16: bool
    evaluate_bf16: bool | Literal["auto"]
    evaluate_tf32: bool
    tracking_uri: str | None
    mlflow_experiment_name: str | None
    tracking: Tracking | Literal["mlflow", "none"]
