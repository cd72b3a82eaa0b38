"""`python -m tests.chaos`: a campaign, its table, and its JSON."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.chaos import table
from tests.chaos.campaign import Campaign, Options, save
from tests.chaos.world import World


def main() -> int:
    options = Options()
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=options.seed)
    parser.add_argument("--faults", type=int, default=options.faults)
    parser.add_argument("--robust", type=int, default=options.robust, help="runs of real training")
    parser.add_argument("--json", type=Path, help="where all that was injected is written")
    parser.add_argument("--keep", action="store_true", help="leave the files for a look")
    given = parser.parse_args()
    options = Options(seed=given.seed, faults=given.faults, robust=given.robust)
    # Not below a long folder: the path of a Unix socket holds some hundred characters.
    world = World(Path(tempfile.mkdtemp(prefix="chaos-")), options.cpus)
    try:
        world.build()
        found = Campaign(world, options, lambda line: print(line, flush=True)).run()
    finally:
        world.end()
        if given.keep:
            print(f"files: {world.folder}")
        else:
            world.remove()
    if given.json:
        save(found, given.json)
    print(table.text(found))
    return 1 if table.failures(found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
