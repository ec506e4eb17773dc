"""The flags of `addition_run.py`, the course's first. Imports no torch.

    python addition_run.py train --help
"""

from __future__ import annotations

import argparse

from tasks.cli import count, new_parser, number, positive, rate, share

CAPACITY = 5_808_844_800_000


def build_parser() -> argparse.ArgumentParser:
    """The parser of `train` and `test`."""
    parser = new_parser("addition_run.py", "A Llama that adds four-digit numbers: train one, test one.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train the model", formatter_class=parser.formatter_class)
    test = commands.add_parser("test", help="evaluate a trained model", formatter_class=parser.formatter_class)
    for command in (train, test):
        command.add_argument("--use_gpu", action="store_true", help="run on a CUDA device if there is one")
        command.add_argument("--seed", type=int, default=1337, help="seed of every random draw")
        command.add_argument("--threads", type=positive, metavar="N", help="CPU threads; torch chooses if not given")
        command.add_argument("--no_compile", action="store_true", help="do not compile the step")
    _add_course(train)
    _add_model(train.add_argument_group("the model, beyond the course"))
    _add_training(train.add_argument_group("the training, beyond the course"))
    _add_trial(train.add_argument_group("a trial of many seeds, before the training"))
    _add_data(train.add_argument_group("problems and files, beyond the course"))
    _add_test(test)
    return parser


def _add_course(train: argparse.ArgumentParser) -> None:
    add = train.add_argument
    add("--epochs", type=positive, default=10, help="passes over the training problems")
    add("--batch_size", type=positive, default=1024, help="problems a step")
    add("--lr", type=rate, default=1e-3, help="peak learning rate")
    add("--save_dir", default="addition_models/best_model/", metavar="DIR", help="folder of all that the run writes")
    add("--train_file", default="data/addition_train.txt", metavar="FILE",
        help="training problems: drawn and written there; read if named and there")  # fmt: skip
    add("--val_file", default="data/addition_dev.txt", metavar="FILE", help="the same for the dev problems")
    add("--dim", type=positive, default=16, help="width of the residual stream")
    add("--n_layers", type=positive, default=6, help="layers")
    add("--n_heads", type=positive, default=4, help="query heads")
    add("--n_kv_heads", type=positive, default=4, help="key/value heads; must divide the query heads")
    add("--capacity", "--capcaity", type=positive, default=CAPACITY, help="6 · parameters · examples seen, at most")


def _add_model(group) -> None:
    add = group.add_argument
    add("--hidden_dim", type=positive, metavar="N", help="width of the feed-forward; else 2/3 of 4·dim, up to 32s")
    add("--head_dim", type=positive, metavar="N", help="features a head; dim / n_heads if not given")
    add("--rope_theta", type=number(float, 0.0, above=True), default=10000.0, help="base of the rotation's angles")
    add("--init_std", type=number(float, 0.0, above=True), metavar="STD",
        help="standard deviation of the first weights; 0.02 if not given, little for a narrow model")  # fmt: skip
    add("--norm_type", choices=("layernorm", "rmsnorm"), default="layernorm", help="norm of every layer")


def _add_training(group) -> None:
    add = group.add_argument
    add("--schedule", choices=("constant", "cosine", "linear"), default="constant", help="decay after the warm-up")
    add("--warmup_steps", type=count, default=0, metavar="N", help="steps in which the rate rises")
    add("--rate_floor", type=share, default=0.0, metavar="SHARE", help="decay to this share of the peak")
    add("--max_grad_norm", type=number(float, 0.0, above=True), metavar="G", help="clip each seed's gradient to G")
    add("--beta2", type=number(float, 0.0, 0.99999), default=0.999, metavar="B", help="AdamW's second beta")
    add("--weight_decay", type=rate, default=0.0, metavar="W", help="decoupled decay, on all parameters")
    add("--seeds", type=positive, default=1, metavar="N", help="train N models side by side, of seeds SEED, SEED+1, …")
    add("--evaluate_every", type=count, default=0, metavar="N", help="steps between measurements; 0: each epoch")
    add("--save_every", type=count, default=0, metavar="N", help="steps between saved states; 0: each epoch")
    add("--log_every", type=positive, default=50, metavar="N", help="steps between lines of the log")
    add("--stop_when_perfect", action="store_true", help="stop once a seed makes no mistake on dev")
    add("--resume", action="store_true", help="go on with the run in --save_dir")
    add("--plain", action="store_true", help="train the shared model as it is, not the fast layout (one seed)")
    add("--chunk", type=positive, metavar="N", help="problems a forward pass; must divide the batch")


def _add_trial(group) -> None:
    add = group.add_argument
    add("--trial_seeds", type=count, default=0, metavar="N",
        help="train N seeds on --trial_examples first; the best --seeds of them go on from there")  # fmt: skip
    add("--trial_examples", type=positive, metavar="N", help="examples that each seed sees in the trial")
    add("--trial_lr", type=rate, metavar="LR", help="peak learning rate of the trial; --lr if not given")
    add("--trial_batch_size", type=positive, metavar="N", help="problems a step of it; --batch_size if not given")


def _add_data(group) -> None:
    add = group.add_argument
    add("--examples", type=positive, metavar="N", help="examples seen, in place of all the capacity allows")
    add("--dev_examples", type=positive, metavar="N", help="dev problems; 20 %% of the training problems if not given")
    add("--exclude", nargs="+", default=[], metavar="FILE",
        help="problems not to train on, besides the test problems in data/")  # fmt: skip
    add("--nines", type=share, default=0.0, metavar="SHARE",
        help="share of the examples drawn among training problems whose carries travel: one, two or three of their "
             "lower columns sum to nine, each as likely")  # fmt: skip
    add("--no_data_files", action="store_true", help="keep the problems in memory, write no data files")


def _add_test(test: argparse.ArgumentParser) -> None:
    add = test.add_argument
    add("--checkpoint", required=True, metavar="FILE", help="the trained model")
    add("--test_file", default="data/addition_test.txt", metavar="FILE", help="problems to ask")
    add("--max_gen_len", type=positive, default=10, metavar="N", help="tokens an answer may have")
    add("--max_test_examples", type=positive, metavar="N", help="ask the first N problems alone")
    add("--exhaustive", action="store_true", help="then ask all 81,000,000 problems")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parsed flags; `args.given` names those that stand on the command line. Exits with code 2 on a bad one."""
    args = build_parser().parse_args(argv)
    parser = build_parser()
    for command in parser._subparsers._group_actions[0].choices.values():
        for action in command._actions:
            action.default = argparse.SUPPRESS
    args.given = frozenset(vars(parser.parse_args(argv)))
    return args
