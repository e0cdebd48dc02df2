"""Starts nginx from a template: as the current user, in the foreground, and writing only to its own
temporary folder.

    python -m servers.frameworks.nginx TEMPLATE NAME=VALUE ... [--upstream URL,URL]

The template is the content of `http`. As in nginx's Docker image, ${NAME} becomes VALUE, and
nginx's own $variables stay. ${UPSTREAM} becomes one `server` line per URL. `include refusals.conf`
within a `server` puts nginx's own errors into OpenAI's envelope.

On SIGTERM, responses in progress finish, as with every other server: nginx gets SIGQUIT for that.
"""

import argparse
import grp
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

# It sets every path with a built-in default, because those belong to root. $status is the status of
# the error response.
MAIN = r"""
pid nginx.pid;
error_log stderr error;
worker_shutdown_timeout 10s;
worker_rlimit_nofile 8192; # a request needs two
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;

    # Twice the contract's limit: the application itself refuses, and counts, bodies that are a
    # little too long. Longer ones must not fill the disk.
    client_max_body_size 8m;

    map $status $refusal {
        413     "the body is too long";
        502     "the server behind nginx does not respond";
        504     "the server behind nginx did not respond in time";
        default "nginx refuses this request";
    }
    map $status $refusal_type { ~^5 "server_error"; default "invalid_request_error"; }

    include site.conf;
}
"""

REFUSALS = r"""
error_page 400 404 405 413 414 500 502 503 504 /refusal;
error_page 494 =400 /refusal; # headers that are too long
location = /refusal {
    internal;
    client_max_body_size 0; # otherwise a body that is too long would be refused here again
    default_type application/json;
    # sent with the error's status
    return 200 '{"error": {"message": "$refusal", "type": "$refusal_type",
                "param": null, "code": null}}';
}
"""


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """Fill in a template. Raises KeyError with the name that has no value."""
    return re.sub(r"\$\{([A-Z_]+)\}", lambda use: values[use[1]], template)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m servers.frameworks.nginx")
    parser.add_argument("template", type=Path)
    parser.add_argument("values", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--upstream", default="", help="base URLs, comma-separated")
    arguments = parser.parse_args()
    for value in arguments.values:
        if "=" not in value:
            parser.error(f"{value!r} is not NAME=VALUE")
    values = dict(value.partition("=")[::2] for value in arguments.values)
    values["UPSTREAM"] = " ".join(
        f"server {urlsplit(url).netloc};" for url in arguments.upstream.split(",") if url
    )
    try:
        site = fill_template(arguments.template.read_text(encoding="utf-8"), values)
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"error: {arguments.template} cannot be read: {error}")
    except KeyError as error:
        sys.exit(
            f"error: {arguments.template} uses ${{{error.args[0]}}}, which has no value; known"
            f" names are {', '.join(values)}"
        )
    # otherwise root's workers would run as "nobody"
    user = "" if os.geteuid() else f" user root {grp.getgrgid(0).gr_name};"
    with tempfile.TemporaryDirectory(prefix="nginx-") as folder:
        for name, text in (("nginx.conf", MAIN), ("refusals.conf", REFUSALS), ("site.conf", site)):
            Path(folder, name).write_text(text, encoding="utf-8")
        nginx = subprocess.Popen(
            ["nginx", "-p", folder, "-c", "nginx.conf", "-e", "stderr", "-g", f"daemon off;{user}"]
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: nginx.send_signal(signal.SIGQUIT))
        code = nginx.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
