"""``python -m condorctl``: the same as the command `condorctl`."""

from condorctl.cli import main

main()
