"""A fake torch, for what it would report on a machine with a GPU."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tests.helpers.python_program import PROGRAMS, ROOT

GIB = 2**30


def device(name: str = "Fake 300", **changes: Any) -> dict[str, Any]:
    """A device of FAKE_TORCH: 80 GiB, compute capability 9.0."""
    sizes = {"free": 60 * GIB, "total": 80 * GIB}
    return {"name": name, "uuid": "f0-0", "major": 9, "minor": 0, **sizes, **changes}


def install_torch(folder: Path, *devices: dict[str, Any], **script: Any) -> dict[str, str]:
    """Return the environment in which the probe finds these devices, or fails with `error`, an
    exception of this `kind`.
    """
    package = folder / "torch"
    package.mkdir(parents=True)
    shutil.copy(PROGRAMS / "fake_torch.py", package / "__init__.py")
    found = {"cuda": "13.0", "devices": devices} | script
    return {
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "FAKE_TORCH": json.dumps(found),
    }
