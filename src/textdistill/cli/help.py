"""The texts of ``--help``. This module imports nothing, so help is printed at once."""

from __future__ import annotations

HELP = """\
usage: textdistill VERB ...

Distils a text-classification dataset into a few learned samples that fine-tune a transformer in one step.

  distill  [key=value ...] [-m]                distil a dataset and score the result
  evaluate DISTILLED_DIR [key=value ...]       score a distilled set
  finetune DISTILLED_DIR --output DIR          write an ordinary Hugging Face model
  predict  SET_OR_MODEL [TEXT ...]             label texts, with a probability for every class
  push     DISTILLED_DIR REPO_ID [--private]   put a distilled set on the Hugging Face hub
  show     DISTILLED_DIR                       print what a distilled set holds
  baseline {full,random,k-centers,herding} [key=value ...]    train on real samples for comparison
  resume   RUN_DIR                             go on with an interrupted run
  verify   DISTILLED_DIR [key=value ...]       check a set's files and measure its score again
  tune     [key=value ...] [--trials N]        search for better settings on validation
  report   RESULT... [--output FILE]           a page, or tables, of the results of runs and baselines
  track    RUN_DIR                             complete the MLflow run of a run folder

textdistill VERB --help describes a verb. --version prints the version. An error is one line; --debug adds its
traceback.
"""

_KEYS = """\
Common keys (textdistill distill --cfg job prints all keys with their values):
  data.task_name=NAME            ag_news sst2 qnli mrpc qqp mnli vader_movie vader_genre, or a hub id
  data.path=PATH                 a csv, tsv, json, jsonl or parquet file instead of the hub; your own data also
                                 need data.text_columns=[a] or [a,b] and data.label_column=c
  data.streaming=true            read a hub dataset over the network, without storing it
  data.protocol=clean|paper      which rows choose the checkpoint
  model.model_name=NAME          any encoder, or minilm-l6
  base.save_dir=DIR              the run folder
  base.seed=N
"""

VERB_HELP = {
    "distill": f"""\
usage: textdistill distill [key=value ...] [-m]

Distils a dataset and scores the result. -m sweeps over comma-separated values. distill is a Hydra application and
takes the flags of Hydra (--cfg job, --multirun, ...).

{_KEYS}
  distilled_data.label_type=hard|soft|unrestricted
  distilled_data.attention_label_type=none|cls|all
  distilled_data.data_per_label=N    samples per class
  learner_train.train_step=T         inner steps
  train.max_steps=N                  outer steps, unless train.epoch=N ends the run first
  train.trajectory=keep|offload|checkpoint    where inner steps keep their gradients
  evaluate.n_eval_model=N            learners in the final score
  tracking=mlflow|none
  experiment=reference               every default of the reference implementation

Several processes: torchrun --nproc_per_node N -m textdistill distill ...
""",
    "evaluate": f"""\
usage: textdistill evaluate DISTILLED_DIR [key=value ...]

Scores a distilled set on the test split and writes results.json. Task, model and protocol default to those that
the set was made for.

{_KEYS}
  evaluate.n_eval_model=N            learners in the score
""",
    "finetune": """\
usage: textdistill finetune DISTILLED_DIR --output DIR [--model NAME] [--seed N] [--export onnx]

Fine-tunes a fresh learner on a distilled set and writes an ordinary Hugging Face model folder.

  --output DIR   new or empty folder for weights, tokenizer and label names
  --model NAME   encoder (default: the encoder that the set was made for)
  --seed N       seed of the head (default 42); the model equals learner 0 of evaluate with base.seed=N
  --export onnx  also write model.onnx for other runtimes; needs the extra onnx
""",
    "predict": """\
usage: textdistill predict SET_OR_MODEL [TEXT ...] [--input FILE] [--text COLUMN[,COLUMN]] [--output FILE]
                           [--model NAME] [--seed N]

Labels texts, with a probability for every class. From a distilled set, a fresh learner is fine-tuned first, which
takes about a second. Prints a table on a terminal, and one JSON object a text elsewhere.

  SET_OR_MODEL       folder or hub id of a distilled set, or folder of a fine-tuned model
  TEXT               the texts; for a set of pairs the two texts of a pair in turn; - reads lines from standard input
  --input FILE       a file with the texts instead, of any kind that data.path takes; - reads standard input
  --text COLUMN      the column of the file, or the two columns of pairs (default: the columns of the set)
  --output FILE      a .csv or .jsonl file with the columns of the input and the predictions, in the order of the input
  --model NAME       encoder (default: the encoder that the set was made for)
  --seed N           seed of the head (default 42); the model equals learner 0 of evaluate with base.seed=N
""",
    "push": """\
usage: textdistill push DISTILLED_DIR REPO_ID [--private] [--revision BRANCH] [--message TEXT] [--license ID]

Puts a distilled set with a README into a dataset repository on the Hugging Face hub, as one commit. Local paths are
left out of the README. Pushing needs a token with write access: hf auth login, or HF_TOKEN.

  REPO_ID        owner/name, or name for your own; it is created if it does not exist
  --private      create a private repository; an existing public repository is refused
  --revision B   a branch, created if it does not exist (default: main)
  --message M    message of the commit
  --license ID   license in the README, by its identifier on the hub: mit, cc-by-4.0, ...
""",
    "show": """\
usage: textdistill show DISTILLED_DIR

Prints shapes, sizes, labels, learning rates, the strongest attention labels and the nearest vocabulary tokens.
""",
    "baseline": f"""\
usage: textdistill baseline {{full,random,k-centers,herding}} [--training inner_loop|ordinary] [key=value ...]

Trains on all data (full), or on equally many real samples as a distilled set has, and scores the result on the test
split. The real samples are drawn at random or chosen by the encoder's features.

  --training inner_loop              gradient steps as on a distilled set; validation chooses the rate (default)
  --training ordinary                200 steps of AdamW
{_KEYS}
  distilled_data.data_per_label=N    samples per class
  learner_train.train_step=T         inner steps
  evaluate.n_eval_model=N            learners in the score of real samples
""",
    "resume": """\
usage: textdistill resume RUN_DIR

Goes on with an interrupted run from its last checkpoint, with the configuration in its config.yaml. The result equals
that of an uninterrupted run. textdistill distill ... train.resume=true base.save_dir=RUN_DIR does the same, and starts
a new run if the folder holds none.
""",
    "verify": f"""\
usage: textdistill verify DISTILLED_DIR [key=value ...]

Checks the files of a distilled set against their checksums, and measures the score that its card states again. Prints
anomalies of the tensors. The exit status is 2 if the measured score is outside the stated spread.

{_KEYS}
  evaluate.n_eval_model=N            learners in the score
""",
    "tune": f"""\
usage: textdistill tune [key=value ...] [--trials N] [--study NAME]

Searches for settings with the best validation and scores the best run on the test split. The first trial has the
defaults. Repeat the command to go on with the study; a larger N adds trials. tune needs the extra tune.

  key=a,b   key=choice(a,b)                one of several values
  key=range(1,5)   key=range(1,9,2)        the numbers of a range; the end is excluded
  'key=interval(0.1,0.5)'                  a number of an interval
  'key=tag(log,interval(0.001,0.1))'       a number of an interval, uniform in its logarithm
  'key=tag(int,interval(1,8))'             an integer of an interval; both ends are included
  --trials N       trials of the study (default 20); stopped and diverged trials count
  --study NAME     folder of its runs in base.save_dir_root (default: base.experiment_name)

{_KEYS}""",
    "report": """\
usage: textdistill report RESULT... [--output FILE] [--format html|markdown|csv|latex]

Compares the results of runs and baselines, for each task, protocol and model. Runs that differ only in seed share a
row. Each row is compared with full data and random real samples, if their results are given. The HTML page is one file
that needs no network. It also shows the learning curves and the samples of the run with the best validation.

  RESULT           results.json, a run folder, or a folder of run folders
  --output FILE    default: standard output
  --format         default: by the suffix of FILE (.html, .md, .csv, .tex); markdown for standard output
""",
    "track": """\
usage: textdistill track RUN_DIR

Completes the MLflow run of a run folder from metrics.jsonl and the other files, if MLflow failed during the run.
Creates the MLflow run if there is none.
""",
}
