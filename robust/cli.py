"""Command line: `python -m robust STAGE …`. Imports torch only once the arguments are sound."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from condorctl.errors import UserError
from robust.arguments import parser
from robust.config import load_preset, override

if TYPE_CHECKING:
    import torch


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage; 0 when it is done, 2 for bad input, 1 when the disk or the memory fails."""
    try:
        _run(parser().parse_args(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader went away (`… | head`): not an error, and nothing to flush.
        sys.stdout = None
        return 141
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        said = str(error).partition("\n")[0] or "out of memory"
        print(f"error: {said}; make the batch smaller, or take more memory", file=sys.stderr)
        return 1
    return 0


def _is_memory(error: Exception) -> bool:
    """Whether there was too little: torch has a class for it on a GPU, on a CPU only words."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
    )


def _run(args: argparse.Namespace) -> None:
    if args.stage != "export":
        _writable(args.out, getattr(args, "init", None))
    _RUN[args.stage](args, args.data_root or None)


def _run_pretrain(args: argparse.Namespace, root: str | None) -> None:
    config = override(load_preset(args.preset), args.settings, args.stage)
    from robust.pretrain import pretrain

    pretrain(config, args.seed, args.out, root=root, device=_device(args.device))


def _run_train(args: argparse.Namespace, root: str | None) -> None:
    config = override(load_preset(args.preset), args.settings, args.stage)
    transfer = args.transfer or ("extractor" if args.init else "unused")
    if (transfer == "unused") == bool(args.init):
        mend = "leave --init out" if args.init else "give --init"
        raise UserError(f"--transfer {transfer}: {mend}")
    from robust.supervised import train

    head = transfer == "complete"
    device = _device(args.device)
    train(config, args.seed, args.init, head, args.out, root=root, device=device)


def _run_on_checkpoint(args: argparse.Namespace, root: str | None) -> None:
    """A stage whose configuration and seed are those of the checkpoint that it starts from."""
    from robust import checkpoint

    source = checkpoint.load(args.init, _SOURCES[args.stage])
    config = override(source.config, args.settings, args.stage)
    device = _device(args.device)
    if args.stage == "linear":
        from robust.linear import linear

        linear(config, source, args.init, args.out, root=root, device=device)
        return
    from robust import supervised

    stage = {"score": supervised.score, "finetune": supervised.finetune}[args.stage]
    stage(config, args.keep, source, args.init, args.out, root=root, device=device)


def _run_evaluate(args: argparse.Namespace, root: str | None) -> None:
    models = _models(args.model)
    from robust.evaluate import evaluate

    evaluate(
        models,
        args.settings,
        root=root,
        surrogate=args.surrogate,
        keep=args.keep,
        out=args.out,
        device=_device(args.device),
    )


def _run_export(args: argparse.Namespace, root: str | None) -> None:
    from robust.export import export

    report = export(args.init, args.out, root=root, dtype=args.dtype, device=_device(args.device))
    print(json.dumps(report, indent=2) if args.json else report.text())


# Which stages' checkpoints a stage can start from.
_SOURCES = {
    "linear": ("pretrain",),
    "score": ("linear", "train"),
    "finetune": ("linear", "train", "score", "finetune"),
}


def _writable(out: str, init: str | None) -> None:
    """UserError when `out` cannot be written, or would replace the checkpoint at `init`.

    A stage that is interrupted starts again from `init`, which must then still be there.
    """
    if not Path(out).parent.is_dir():
        raise UserError(f"--out {out}: no such folder")
    if Path(out).is_dir() or out.endswith("/"):
        raise UserError(f"--out {out}: a folder, name a file in it")
    if init and Path(out).resolve() == Path(init).resolve():
        raise UserError(f"--out {out}: is what --init reads; name another file")


def _device(name: str) -> torch.device:
    """The device to compute on; UserError when it is unknown or not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # `meta` takes whatever it is given, and holds nothing
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name}: there is none here; cpu is always there") from None
    return device


def _models(pairs: Sequence[str]) -> dict[str, str]:
    """Name → path of each NAME=PATH, in order."""
    models: dict[str, str] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise UserError(f"--model {pair}: write it as NAME=PATH")
        if not name.isprintable():
            raise UserError(f"--model {pair}: the name must be printable UTF-8")
        if name in models:
            raise UserError(f"--model {pair}: the name {name} is taken")
        models[name] = path
    return models


_RUN = {
    "pretrain": _run_pretrain,
    "linear": _run_on_checkpoint,
    "train": _run_train,
    "score": _run_on_checkpoint,
    "finetune": _run_on_checkpoint,
    "evaluate": _run_evaluate,
    "export": _run_export,
}
