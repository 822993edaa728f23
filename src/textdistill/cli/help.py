"""The texts of ``--help``. This module imports nothing, so that help is printed at once."""

from __future__ import annotations

HELP = """\
usage: textdistill VERB ...

Distils a text-classification dataset into a few learned samples that fine-tune a transformer in one step.

  distill  [key=value ...] [-m]                distil a dataset and score the result
  evaluate DISTILLED_DIR [key=value ...]       score a distilled set
  finetune DISTILLED_DIR --output DIR          write an ordinary Hugging Face model
  push     DISTILLED_DIR REPO_ID [--private]   put a distilled set on the Hugging Face hub
  show     DISTILLED_DIR                       print what a distilled set holds
  baseline {full,random,k-centers,herding} [key=value ...]    score full data, or as many real samples
  resume   RUN_DIR                             go on with an interrupted run
  verify   DISTILLED_DIR [key=value ...]       check a set's files and measure its stated score again
  tune     [key=value ...] [--trials N]        search for better settings on validation
  report   RESULT... [--output FILE]           a page, or tables, of the results of runs and baselines
  track    RUN_DIR                             complete the MLflow run of a run folder

textdistill VERB --help tells more; --version prints the version. An error is one line; --debug adds where it
came from.
"""

_KEYS = """\
Often used keys (textdistill distill --cfg job prints all, with their values):
  data.task_name=NAME            ag_news sst2 qnli mrpc qqp mnli vader_movie vader_genre, or a hub id
  data.path=PATH                 csv, tsv, json, jsonl or parquet instead of the hub;
                                 with data.text_columns=[a] or [a,b] and data.label_column=c for your own data
  data.streaming=true            read a hub dataset over the network, without storing it
  data.protocol=clean|paper      which rows select and which are reported
  model.model_name=NAME          any encoder, or minilm-l6
  base.save_dir=DIR              the run folder
  base.seed=N
"""

VERB_HELP = {
    "distill": f"""\
usage: textdistill distill [key=value ...] [-m]

Distils a dataset and scores the result; -m sweeps over comma-separated values. A Hydra application: its flags
(--cfg job, --multirun, ...) work.

{_KEYS}
  distilled_data.label_type=hard|soft|unrestricted
  distilled_data.attention_label_type=none|cls|all
  distilled_data.data_per_label=N    samples per class
  learner_train.train_step=T         inner steps
  train.max_steps=N                  outer steps; train.epoch=N, whichever ends first
  train.trajectory=keep|offload|checkpoint    memory of many inner steps
  evaluate.n_eval_model=N            learners in the final score
  tracking=mlflow|none
  experiment=reference               every default of the reference implementation

Several processes: torchrun --nproc_per_node N -m textdistill distill ...
""",
    "evaluate": f"""\
usage: textdistill evaluate DISTILLED_DIR [key=value ...]

Scores a distilled set on the reported split and writes results.json. Task, model and protocol are those that
the set was made for, unless given.

{_KEYS}
  evaluate.n_eval_model=N            learners in the score
""",
    "finetune": """\
usage: textdistill finetune DISTILLED_DIR --output DIR [--model NAME] [--seed N] [--export onnx]

Fine-tunes a fresh learner on a distilled set and writes an ordinary Hugging Face model folder.

  --output DIR   new or empty folder for weights, tokenizer and label names
  --model NAME   encoder (default: the one that the set was made for)
  --seed N       decides the head (default 42); learner 0 of evaluate with base.seed=N is this model
  --export onnx  also write model.onnx, for other runtimes; needs the extra onnx
""",
    "push": """\
usage: textdistill push DISTILLED_DIR REPO_ID [--private] [--revision BRANCH] [--message TEXT] [--license ID]

Puts a distilled set into a dataset repository on the Hugging Face hub, with a README, as one commit; folders and files
of this machine are left out of its card. Needs a token that may write: hf auth login, or HF_TOKEN.

  REPO_ID        owner/name, or name for your own; made unless it exists
  --private      make it private; an existing repository that is public is refused
  --revision B   a branch, made if need be (default: main)
  --message M    of the commit
  --license ID   for the README, as the hub spells it: mit, cc-by-4.0, ...
""",
    "show": """\
usage: textdistill show DISTILLED_DIR

Prints shapes, sizes, labels, learning rates, the strongest attention labels and the nearest vocabulary tokens.
""",
    "baseline": f"""\
usage: textdistill baseline {{full,random,k-centers,herding}} [--training inner_loop|ordinary] [key=value ...]

Scores, on the rows that distill reports, ordinary fine-tuning on all rows (full), or on as many real samples as a
distilled set would have: drawn at random, or chosen by the encoder's features.

  --training inner_loop              gradient steps as on a distilled set, their rate chosen on validation (default)
  --training ordinary                200 steps of AdamW
{_KEYS}
  distilled_data.data_per_label=N    samples per class
  learner_train.train_step=T         inner steps
  evaluate.n_eval_model=N            learners in the score of real samples
""",
    "resume": """\
usage: textdistill resume RUN_DIR

Goes on with the run of a folder from its last checkpoint, with the configuration in its config.yaml; the end is
that of a run that was never interrupted. textdistill distill ... train.resume=true base.save_dir=RUN_DIR does the
same, and starts the run where there is none.
""",
    "verify": f"""\
usage: textdistill verify DISTILLED_DIR [key=value ...]

Checks the files of a distilled set against their checksums, measures again the score that its card states, says
whether it falls within its stated spread, and prints what looks unusual in the tensors. Exits with 2 if it does not.

{_KEYS}
  evaluate.n_eval_model=N            learners in the score
""",
    "tune": f"""\
usage: textdistill tune [key=value ...] [--trials N] [--study NAME]

Searches for settings with a low validation loss, with the defaults as the first trial, and scores the best run on the
reported split. The same command again goes on with the study; a larger N makes it longer. Needs the extra tune.

  key=a,b   key=choice(a,b)                one of several values
  key=range(1,5)   key=range(1,9,2)        numbers of a range, without its end
  'key=interval(0.1,0.5)'                  any number in between
  'key=tag(log,interval(0.001,0.1))'       the same, evenly over its logarithm
  'key=tag(int,interval(1,8))'             whole numbers, both ends included
  --trials N       of the study in all (default 20), those stopped early and those that diverged included
  --study NAME     folder of its runs in base.save_dir_root (default: base.experiment_name)

{_KEYS}""",
    "report": """\
usage: textdistill report RESULT... [--output FILE] [--format html|markdown|csv|latex]

Results of runs and baselines side by side, for each task, protocol and model: every setting with the mean over its
learners and seeds, beside full data and random real samples where their results are given too. The HTML page is one
file that needs no network; it also shows the learning curves of the run with the lowest validation loss, and what it
has learned.

  RESULT           results.json, a run folder, or a folder of run folders
  --output FILE    default: standard output
  --format         default: by the ending of FILE, .html, .md, .csv or .tex; markdown for standard output
""",
    "track": """\
usage: textdistill track RUN_DIR

Completes the MLflow run of a run folder from metrics.jsonl and the other files in it, where MLflow failed while the
run went on; makes the MLflow run where there is none.
""",
}
