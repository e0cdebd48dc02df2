"""A certificate that no authority has signed."""

import subprocess
from pathlib import Path

from tests.helpers.installed import require_installed


def make_certificate(folder: Path) -> Path:
    """Return a file with a self-signed certificate of localhost and 127.0.0.1, and its key.
    certificate.pem beside it has only the certificate.
    """
    require_installed("openssl")
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", names),
            *("-keyout", "key.pem", "-out", "certificate.pem"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    both = folder / "both.pem"
    both.write_text((folder / "key.pem").read_text() + (folder / "certificate.pem").read_text())
    return both
