"""Command line: `python -m robust STAGE …`. Imports torch only once the arguments are sound."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from condorctl.errors import UserError
from robust.config import explain, load_preset, override

_STAGES = {
    "pretrain": "robust contrastive pretraining of the encoder (RoCL)",
    "train": "adversarial training of all weights (TRADES), or plain training",
    "score": "importance scores: which weights of a dense network stay (HYDRA)",
    "finetune": "adversarial fine-tuning of the weights that stay, under a frozen mask",
    "evaluate": "clean accuracy and PGD on the test part, one row a network",
}


class _Parser(argparse.ArgumentParser):
    """One line for bad arguments instead of usage and error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage; 0 when it is done, 2 for bad input, 1 when the disk fails."""
    try:
        _run(_parser().parse_args(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> _Parser:
    parser = _Parser(prog="python -m robust", description="Robust, pruned networks by stages.")
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, purpose in _STAGES.items():
        stage = stages.add_parser(
            name,
            help=purpose,
            description=f"Stage {name}: {purpose}.",
            epilog="\n".join(["options for --set [source]:", *explain(name)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in ("pretrain", "train"):
            stage.add_argument("--preset", required=True, help="configuration file, e.g. smoke")
            stage.add_argument("--seed", type=_seed, default=0, help="random seed (0)")
        if name == "train":
            stage.add_argument("--init", help="pretrained encoder to start from [extractor]")
            stage.add_argument("--trainer", help="trades or plain, short for --set train.trainer=")
        if name in ("score", "finetune"):
            stage.add_argument("--init", required=True, help="checkpoint to start from")
        if name == "score":
            doc = "fraction of each layer's weights that stays [HYDRA k]"
            stage.add_argument("--keep", type=_keep, required=True, help=doc)
        if name == "finetune":
            doc = "for a dense checkpoint: prune by magnitude [LWM]"
            stage.add_argument("--keep", type=_keep, help=doc)
        if name == "evaluate":
            doc = "a row's name and its checkpoint; repeat"
            stage.add_argument(
                "--model", action="append", required=True, metavar="NAME=PATH", help=doc
            )
        else:
            stage.add_argument("--out", default="checkpoint.pt", help="where to (checkpoint.pt)")
        doc = "replace one option; repeat"
        stage.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help=doc
        )
    return parser


def _run(args: argparse.Namespace) -> None:
    if args.stage == "evaluate":
        models = _models(args.model)
        from robust.evaluate import evaluate

        evaluate(models, args.settings)
        return

    if not Path(args.out).parent.is_dir():
        raise UserError(f"--out {args.out}: no such folder")
    if Path(args.out).is_dir():
        raise UserError(f"--out {args.out}: a folder, name a file in it")
    if args.stage in ("pretrain", "train"):
        settings = list(args.settings)
        if args.stage == "train" and args.trainer is not None:
            settings.append(f"train.trainer={args.trainer}")
        config = override(load_preset(args.preset), settings, args.stage)
        if args.stage == "pretrain":
            from robust.pretrain import pretrain

            pretrain(config, args.seed, args.out)
        else:
            from robust.supervised import train

            train(config, args.seed, args.init, args.out)
        return

    from robust import checkpoint, supervised

    sources = ("train",) if args.stage == "score" else ("train", "score")
    source = checkpoint.load(args.init, sources)
    config = override(source.config, args.settings, args.stage)
    stage = {"score": supervised.score, "finetune": supervised.finetune}[args.stage]
    stage(config, args.keep, source, args.init, args.out)


def _keep(text: str) -> float:
    try:
        keep = float(text)
    except ValueError:
        keep = 0.0
    if not 0 < keep <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no fraction in (0, 1]")
    return keep


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number in [0, 2^63)")
    return int(text)


def _models(pairs: Sequence[str]) -> dict[str, str]:
    """Name → path of each NAME=PATH, in order."""
    models: dict[str, str] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise UserError(f"--model {pair}: write it as NAME=PATH")
        if name in models:
            raise UserError(f"--model {pair}: the name {name} is taken")
        models[name] = path
    return models
