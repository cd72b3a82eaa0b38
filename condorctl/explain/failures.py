"""Why a command failed, from how it ended and what it wrote last."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field

from condorctl.explain.traces import Line, Peak

# What stage.sh and the shell in it mean by these; above 128 they report a signal.
UNWRITTEN, NOT_EXECUTABLE, NOT_FOUND = 74, 126, 127

_PREFIX = r"(?:\[rank\d+\]:\s?)?"  # torch's launcher puts the process's number before each line
_TRACEBACK = re.compile(
    _PREFIX + r"\s*(?:\+ )?(?:Exception Group )?Traceback \(most recent call last\):"
)
_FRAME = re.compile(_PREFIX + r'\s+File "(?P<file>[^"]+)", line (?P<line>\d+)')
_EXCEPTION = re.compile(_PREFIX + r"(?P<name>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$")


@dataclass
class Failure:
    """Why it failed, the lines that show it, what mends it."""

    cause: str
    mend: str
    lines: list[Line] = field(default_factory=list)


@dataclass(frozen=True)
class Words:
    """What the user calls things: a pipeline's spec and an adopted submit file differ."""

    inputs: str
    again: str
    resume: str


# The first that fits the exception, or else one of the last lines. `{0}` is the pattern's group.
_KNOWN: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), cause, mend)
    for pattern, cause, mend in (
        (
            r"(?:killed by signal: )?Bus error|unable to (?:write to|open shared memory)|"
            r"out of shared memory|insufficient shared memory",
            "/dev/shm of the node, or of its container, is too small for data loader workers",
            "set num_workers=0, or share tensors by the file system "
            "(torch.multiprocessing.set_sharing_strategy), then {again}",
        ),
        (
            r"CUDA out of memory|CUDA error: out of memory|cuda.*OutOfMemory|CUBLAS_STATUS_ALLOC",
            "the GPU's memory was too small",
            "make the batch smaller, or ask for a GPU with more memory, then {again}",
        ),
        (
            r"^FATAL: +(?P<what>(?:could not open image|container creation failed|while extracting|"
            r"image \S+ (?:is|has)|failed to (?:open|mount)).*)",
            "Apptainer could not start its container: {0}",
            "see that `image` is one that Apptainer runs there, then {again}",
        ),
        (
            r"Failed to find compatible interpreter|this node cannot unpack the Python environment",
            "the node has no Python that its `venv` can run with",
            "pack it with a Python version that the nodes have (`condorctl venv pack` names its "
            "own), or use an image, then {again}",
        ),
        (
            r"No module named '?(?P<what>[\w.]+)",
            "the Python that ran it has no module {0}",
            "add it to {inputs} if it is yours; else use an image or an interpreter that has it, "
            "then {again}",
        ),
        (
            r"No space left on device|Disk quota exceeded",
            "the disk was full",
            "raise request_disk, or write less, then {again}",
        ),
        (
            r"^MemoryError|[^ ]*ArrayMemoryError|std::bad_alloc|Cannot allocate memory|"
            r"DefaultCPUAllocator: (?:can't|not enough)",
            "its memory was too small",
            "raise request_memory, then {again}",
        ),
        (
            r"No CUDA GPUs are available|no NVIDIA driver|Torch not compiled with CUDA|"
            r"no CUDA-capable device|CUDA driver version is insufficient",
            "it found no GPU that it can use",
            "ask for one (request_gpus: 1), or let it run on the CPU, then {again}",
        ),
        (
            r"no kernel image is available",
            "its PyTorch or CUDA was not built for the node's GPU",
            "use a build for that GPU, or ask for another one, then {again}",
        ),
        (
            r"can't open file '?(?P<what>[^':]+)|FileNotFoundError: .*?: '(?P<file>[^']+)'|"
            r"(?:cannot access|cannot open|cannot stat) '(?P<seen>[^']+)'",
            "there is no {0} where it ran",
            "list it in {inputs} and open it by its last name: a job has a folder of its own; "
            "then {again}",
        ),
        (
            r"Name or service not known|Temporary failure in name resolution|"
            r"Network is unreachable|URLError|Max retries exceeded",
            "the node could not reach a server",
            "bring the data along in {inputs}, then {again}; if it was a passing fault, {resume}",
        ),
        (
            r"version [`'](?P<what>GLIBC\w*_[\d.]+)' not found",
            "the node's system is older than the program: it lacks {0}",
            "build it on an older system, or run it in a container, then {again}",
        ),
        (
            r"error while loading shared libraries: (?P<what>[^:]+)",
            "the node lacks the library {0}",
            "bring it along in {inputs}, or run in a container that has it, then {again}",
        ),
    )
)

_SIGNALS = {
    signal.SIGKILL: "was killed: by the node when memory ran out, or by somebody",
    signal.SIGTERM: "was told to stop",
    signal.SIGSEGV: "crashed: it touched memory that is not its own",
    signal.SIGBUS: "crashed with a bus error: mostly a full /dev/shm, or a file cut short",
    signal.SIGABRT: "gave up by itself (abort)",
    signal.SIGFPE: "crashed in arithmetic",
    signal.SIGILL: "crashed: its instructions are not those of the node's processor",
    signal.SIGXCPU: "used more CPU time than its limit",
    signal.SIGINT: "was interrupted",
    signal.SIGPIPE: "lost the reader of its output",
}


def diagnose(
    code: int | None,
    number: int | None,
    err: Sequence[Line],
    out: Sequence[Line],
    peak: Peak,
    words: Words,
) -> Failure:
    """Why a job that ended with exit code `code` or by signal `number` has failed.

    `err` and `out` are the last lines of what it wrote, `peak` its memory.
    """
    if number is None and code is not None and 128 < code < 193:
        number = code - 128
    known = from_words(err, out, words)
    if number in (signal.SIGKILL, signal.SIGBUS, signal.SIGTERM, signal.SIGXCPU) or (
        number is not None and not known
    ):
        return _by_signal(number, err, peak, words, known)
    ended = f"exit code {code}" if number is None else _name(number)
    if code == UNWRITTEN and (unwritten := _last(err, "condorctl: the command ended well")):
        told = [line.text.rpartition("did not write ")[2] for line in unwritten]
        return Failure(
            f"the command ended well but did not write {', '.join(told)}",
            f"write it, or take it out of the stage's outputs, then {words.again}",
            unwritten,
        )
    if code in (NOT_EXECUTABLE, NOT_FOUND) and (failure := _not_started(code, err, words)):
        return failure
    if known:
        return known
    return Failure(
        f"it ended with {ended}", f"mend what it says, then {words.again}", _end(err, out)
    )


def from_words(err: Sequence[Line], out: Sequence[Line], words: Words) -> Failure | None:
    """What the last lines of a job's errors and output tell; None when they tell nothing."""
    # Python's traceback goes to the errors; some programs write both into one.
    for lines in (err, out):
        traceback = _traceback(lines)
        if traceback:
            return _of_exception(traceback, words)
    for lines in (err, out):
        for line in reversed(lines[-40:]):
            if known := _known(line.text, words):
                return Failure(*known, [line])
    return None


def _traceback(lines: Sequence[Line]) -> tuple[Line | None, Line] | None:
    """The innermost frame and the exception of the last traceback."""
    start = next(
        (i for i in range(len(lines) - 1, -1, -1) if _TRACEBACK.match(lines[i].text)), None
    )
    if start is None:
        return None
    frame = None
    for line in lines[start + 1 :]:
        if _FRAME.match(line.text):
            frame = line
        elif frame and (found := _EXCEPTION.match(line.text)) and found["name"]:
            return frame, line
    return None


def _of_exception(traceback: tuple[Line | None, Line], words: Words) -> Failure:
    frame, raised = traceback
    lines = [line for line in (frame, raised) if line]
    text = re.sub("^" + _PREFIX, "", raised.text)
    if known := _known(text, words):
        return Failure(*known, lines)
    where = _FRAME.match(frame.text) if frame else None
    at = f" (line {where['line']} of {where['file'].rpartition('/')[2]})" if where else ""
    return Failure(f"{text}{at}", f"mend that, then {words.again}", lines)


def _known(text: str, words: Words) -> tuple[str, str] | None:
    for pattern, cause, mend in _KNOWN:
        found = pattern.search(text)
        if found:
            what = next((value for value in found.groups() if value), "")
            if "{0}" in cause and not what:
                continue
            return cause.replace("{0}", what), _in_words(mend, words)
    return None


def _by_signal(
    number: int, err: Sequence[Line], peak: Peak, words: Words, known: Failure | None
) -> Failure:
    what = _SIGNALS.get(signal.Signals(number)) if number in _VALID else None
    cause = f"it {what or 'was ended'} ({_name(number)})"
    if number == signal.SIGBUS and known:
        return known
    if number != signal.SIGKILL:
        mend = f"{words.resume} runs it again" if number in _FROM_OUTSIDE else None
        lines = _end(err, ())
        return Failure(cause, mend or f"see its last lines, mend that, then {words.again}", lines)
    if peak.used and peak.asked and peak.used >= 0.9 * peak.asked:
        return Failure(
            f"it was killed, most likely for its memory ({_name(number)}): it used {peak.used} MB "
            f"of the {peak.asked} MB that it asked for",
            f"set request_memory to {more_memory(peak)} MB, then {words.again}",
            _end(err, ()),
        )
    if peak.used and peak.asked:
        cause += f"; it was seen to use {peak.used} MB of the {peak.asked} MB that it asked for"
    mend = (
        f"if its memory grows fast, raise request_memory, then {words.again}; else {words.resume}"
    )
    return Failure(cause, mend, _end(err, ()))


_VALID = set(signal.valid_signals())
_FROM_OUTSIDE = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def more_memory(peak: Peak) -> int:
    """What to ask for instead, in MB: a quarter more than was used, and room if it was cut off."""
    used, asked = peak.used or 0, peak.asked or 0
    # At its limit a job is stopped: how much it would have used nobody has seen.
    wanted = 2 * asked if used <= 1.05 * asked else 1.25 * used
    step = 128 if wanted < 2048 else 512 if wanted < 16384 else 2048
    return max(step, -(-int(wanted) // step) * step)


def _not_started(code: int, err: Sequence[Line], words: Words) -> Failure | None:
    patterns = (
        # dash, bash, env
        r": \d+: (?:exec: )?(?P<what>[^:]+): (?:not found|Permission denied)$",
        r"(?P<what>[^: ]+): (?:command not found|cannot execute|Permission denied)",
        r"env: [‘'\"]?(?P<what>[^’'\":]+)[’'\"]?: (?:No such file|Permission)",
        r": \d+: (?P<what>[^:]+): (?:Exec format error|No such file or directory)",
    )
    for line in reversed(err):
        for pattern in patterns:
            found = re.search(pattern, line.text)
            if not found:
                continue
            what = found["what"]
            if code == NOT_FOUND:
                return Failure(
                    f"the node has no program {what!r}",
                    f"list it in {words.inputs} and call it ./NAME, or use an image that has it, "
                    f"then {words.again}",
                    [line],
                )
            return Failure(
                f"{what} cannot be executed",
                f"`chmod +x {what.removeprefix('./')}`, see that its #! line names a program that "
                f"the node has, then {words.again}",
                [line],
            )
    return None


def _in_words(mend: str, words: Words) -> str:
    filled = mend.replace("{inputs}", words.inputs)
    return filled.replace("{again}", words.again).replace("{resume}", words.resume)


def _name(number: int) -> str:
    return f"signal {number}" + (f", {signal.Signals(number).name}" if number in _VALID else "")


def _last(lines: Sequence[Line], start: str) -> list[Line]:
    return [line for line in lines if line.text.startswith(start)]


def _end(err: Sequence[Line], out: Sequence[Line]) -> list[Line]:
    for lines in (err, out):
        told = [line for line in lines if line.text.strip()]
        if told:
            return told[-3:]
    return []
