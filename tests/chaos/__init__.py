"""Faults on a real pool, drawn from a seed, while pipelines run: `make chaos SEED=1 FAULTS=200`.

chain.py      the stage whose final bytes are known
workload.py   the pipelines, what they are compared with, and what their jobs' work was worth
pool.py       a personal pool with a second node
world.py      what a fault may touch: the pool, its processes, the runs; condorctl as a user's
              automation calls it
faults.py     what a fault is; processes killed, jobs evicted and held, nodes that vanish
damage.py     disks that are full, checkpoints that are damaged, logs that are rotated
commands.py   condorctl itself: killed, two at once, cut off in a fetch
campaign.py   the plan from the seed, and its execution
outcome.py    what came of it
    table.py      the same for a human
"""
