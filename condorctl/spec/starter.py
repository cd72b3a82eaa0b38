"""`condorctl init`: a small pipeline that works, in a folder of the user's own."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from condorctl.errors import UserError
from condorctl.spec import schema

# In a checkout of this project a .gitignore of the starter's own would count.
_NAMES = {"gitignore": ".gitignore"}
_FILES = ("jobs/first.yaml", "train.py", "best.py", "gitignore")


def init(folder: Path) -> list[Path]:
    """Write the starter's files and the schema for editors into `folder`; return what it wrote.

    Raises UserError, before anything is written, when a file of that name is there.
    """
    starter = resources.files("condorctl.spec") / "starter_files"
    texts = {_NAMES.get(name, name): (starter / name).read_text("utf-8") for name in _FILES}
    texts["jobs/pipeline.schema.json"] = json.dumps(schema.spec(), indent=2) + "\n"
    targets = {folder / name: text for name, text in texts.items()}
    for target in targets:
        if target.exists() or target.is_symlink():
            raise UserError(f"{target}: is there already, and nothing is overwritten")
    for target, text in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    return list(targets)
