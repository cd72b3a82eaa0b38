"""HTCondor's own: its daemons and tools, its submit language, DAGMan, its logs' words."""
