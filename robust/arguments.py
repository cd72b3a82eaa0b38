"""The arguments of `python -m robust STAGE …`: which there are, and what each may be."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any, NoReturn

from condorctl.errors import UserError
from robust.options import explain


class _Parser(argparse.ArgumentParser):
    """One line for bad arguments instead of usage and error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    """Of all stages. Raises UserError where argparse would print and exit, but for --help."""
    whole = _Parser(prog="python -m robust", description="Robust, pruned networks by stages.")
    stages = whole.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, (purpose, add_options) in _STAGES.items():
        options = list(explain(name))
        stage = stages.add_parser(
            name,
            help=purpose,
            description=f"Stage {name}: {purpose}.",
            epilog="\n".join(["options for --set [source]:", *options]) if options else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_options(stage)
        if options:
            stage.add_argument(
                "--set",
                action="append",
                default=[],
                metavar="KEY=VALUE",
                dest="settings",
                help="replace one option; repeat",
            )
        stage.add_argument(
            "--data-root",
            default=os.environ.get("ROBUST_DATA_ROOT"),
            help="folder or tar archive of images, or torchvision's folder; digits need none "
            "($ROBUST_DATA_ROOT)",
        )
        stage.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 …; auto takes a GPU")
    return whole


def _pretrain(stage: argparse.ArgumentParser) -> None:
    stage.add_argument("--preset", required=True, help="configuration file, e.g. smoke")
    stage.add_argument("--seed", type=_seed, default=0, help="random seed (0)")
    _out(stage)


def _linear(stage: argparse.ArgumentParser) -> None:
    _init(stage, "pretrained encoder")
    for flag, key, meaning in (
        ("--robust", "robust", "train on PGD images: r-LE"),
        ("--finetune", "finetune", "train the encoder too"),
        ("--ss", "contrastive", "add NT-Xent of two clean views; needs --finetune"),
    ):
        _short(stage, flag, meaning, action="append_const", const=f"linear.{key}=true")
    _out(stage)


def _train(stage: argparse.ArgumentParser) -> None:
    _pretrain(stage)
    stage.add_argument("--init", help="checkpoint to start from")
    stage.add_argument(
        "--transfer",
        choices=("extractor", "complete", "unused"),
        help="what --init gives: its encoder (the default), its classifier too, or nothing",
    )
    _trainer(stage, "train")


def _score(stage: argparse.ArgumentParser) -> None:
    _init(stage, "dense checkpoint")
    stage.add_argument(
        "--keep", type=_keep, required=True, help="fraction of the weights that stays [HYDRA k]"
    )
    _trainer(stage, "score")
    _out(stage)


def _finetune(stage: argparse.ArgumentParser) -> None:
    _init(stage, "scored or dense checkpoint")
    stage.add_argument(
        "--keep", type=_keep, help="for a dense checkpoint: prune by magnitude [LWM]; 1 keeps all"
    )
    _trainer(stage, "finetune")
    _out(stage)


def _evaluate(stage: argparse.ArgumentParser) -> None:
    stage.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="NAME=PATH",
        help="a row's name and its checkpoint; repeat",
    )
    stage.add_argument(
        "--surrogate", metavar="PATH", help="network that the transfer attack is made on"
    )
    stage.add_argument("--keep", type=_keep, help="refuse networks that keep another fraction")
    _short(
        stage,
        "--attacks",
        "short for --set evaluate.attacks=[…]: pgd, l2, l1, square, autoattack",
        action="append",
        type=lambda text: f"evaluate.attacks={json.dumps(text.split(','))}",
        metavar="NAME,…",
    )
    stage.add_argument(
        "--out", default="evaluation.json", help="record; continued if there (evaluation.json)"
    )


def _export(stage: argparse.ArgumentParser) -> None:
    _init(stage, "checkpoint")
    stage.add_argument("--out", default="export", help="folder to write (export)")
    stage.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        default="float16",
        help="of the kept weights (float16)",
    )
    stage.add_argument("--json", action="store_true", help="print the report as JSON")


def _init(stage: argparse.ArgumentParser, what: str) -> None:
    stage.add_argument("--init", required=True, help=f"{what} to start from")


def _out(stage: argparse.ArgumentParser) -> None:
    stage.add_argument("--out", default="checkpoint.pt", help="where to (checkpoint.pt)")


def _trainer(stage: argparse.ArgumentParser, section: str) -> None:
    _short(
        stage,
        "--trainer",
        f"short for --set {section}.trainer=: trades, pgd or plain",
        action="append",
        type=lambda text: f"{section}.trainer={text}",
        metavar="NAME",
    )


def _short(stage: argparse.ArgumentParser, flag: str, meaning: str, **how: Any) -> None:
    """A flag that stands for one `--set`."""
    stage.add_argument(flag, dest="settings", default=[], help=meaning, **how)


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


# Each stage: what it is for, and what adds its options.
_STAGES: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "pretrain": ("robust contrastive pretraining of the encoder (RoCL)", _pretrain),
    "linear": (
        "a linear classifier on the pretrained encoder (LE, r-LE), or fine-tuning of both",
        _linear,
    ),
    "train": ("adversarial training of all weights (TRADES, PGD-AT), or plain training", _train),
    "score": ("importance scores: which weights of a dense network stay (HYDRA)", _score),
    "finetune": (
        "adversarial fine-tuning of the weights that stay, under a frozen mask",
        _finetune,
    ),
    "evaluate": ("accuracy on the test part, clean and under attack, one row a network", _evaluate),
    "export": ("a sparse file, an ONNX file and a report of what the network costs", _export),
}
