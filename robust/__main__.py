import io
import os
import sys

from robust.cli import main

# Threads of libgomp spin while they wait for each other, which on a core that they share stalls a
# training step of 0.1 s for up to 10 s. A thousand turns bound that (0.28 s) and cost an idle
# machine a fifth. Read when torch is loaded, so it must be set before.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Without it cuBLAS has no deterministic algorithm, and torch refuses the others (CUDA 10.2 on).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# A locale that lacks ε must not end an evaluation when it prints a figure.
for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")

sys.exit(main())
