"""Plays uv: notes the torch backend that it is given, and makes the folder of `uv venv`.

SERVEOFF_TEST_NOTES has the name of the file for the note.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    notes = Path(os.environ["SERVEOFF_TEST_NOTES"])
    notes.write_text(os.environ.get("UV_TORCH_BACKEND", ""))
    if sys.argv[1] == "venv":
        Path(sys.argv[4]).mkdir()
