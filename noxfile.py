"""Each session installs what it needs, then calls the module that does the work."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import nox

if sys.version_info < (3, 11):  # noqa: UP036 - nox may run on any Python that it finds
    sys.exit("error: Serveoff needs Python 3.11, 3.12 or 3.13, such as `uvx --python 3.12 nox`")
import tomllib

sys.path.insert(0, str(Path(__file__).parent))
from servers.runtime.cuda_toolkit import detect_machine
from servers.runtime.errors import LaunchError

nox.options.sessions = ["bench"]
nox.options.reuse_venv = "yes"
nox.options.default_venv_backend = "virtualenv"
try:
    MACHINE = detect_machine()
except LaunchError as error:
    sys.exit(f"error: {error}")
GPU = MACHINE.kind == "gpu"
CONSTRAINTS = "constraints-cpu.txt"
if GPU:
    CONSTRAINTS = os.environ.get("SERVEOFF_GPU_CONSTRAINTS", "constraints-gpu.txt")
    if not Path(CONSTRAINTS).is_file():
        known = ", ".join(map(str, sorted(Path().glob("constraints-gpu*.txt"))))
        sys.exit(f"error: SERVEOFF_GPU_CONSTRAINTS: there is no file {CONSTRAINTS}: take {known}")
    # apart from the processor's: vllm and vllm-cpu overwrite each other's files
    nox.options.envdir = f".nox/{Path(CONSTRAINTS).stem}"
EXTRAS = tomllib.loads(Path("pyproject.toml").read_text())["project"][
    "optional-dependencies"
].keys() - {"vllm-cpu" if GPU else "vllm-gpu"}
OLDEST_PYTHON = "3.11"
MEASURE = {"load", "analysis"}  # what every measurement and its report need


def install(session: nox.Session, extras: Collection[str] = EXTRAS) -> None:
    """Installs these extras in one step with uv, which takes a second if nothing has changed. `nox
    --no-install` skips it.
    """
    if not Path(session.bin, "uv").exists():
        session.install("--quiet", "uv")
    environment = {
        "UV_SYSTEM_CERTS": "1"
    }  # else uv trusts only its own certificates, and fails behind a company's CA
    links = local_wheels(session)
    if links:
        environment["UV_FIND_LINKS"] = ",".join(links)
    if not GPU:
        wheel = f"torch-*-cp{sys.version_info.major}{sys.version_info.minor}-*"
        if sys.platform == "linux" and not any(any(Path(link).glob(wheel)) for link in links):
            environment["UV_TORCH_BACKEND"] = (
                "cpu"  # PyPI's torch for Linux brings gigabytes of CUDA
            )
    session.run_install(
        *("uv", "pip", "install", "--quiet", "-r", "pyproject.toml"),
        *requirements_of(extras, CONSTRAINTS),
        env=environment,
    )
    session.env.update(
        environment
    )  # servers with an environment of their own (servers/runtime/build_cache.py) install as we do


def requirements_of(extras: Collection[str], constraints: str) -> list[str]:
    """The options of uv for these extras."""
    options = ["-c", constraints, "--excludes", "excludes.txt"]
    for extra in sorted(extras):
        options += ["--extra", extra]
    if constraints == "constraints-cpu.txt":
        options += ["--excludes", "excludes-cpu.txt"]
    return options


def install_for(session: nox.Session, module: str, *arguments: str, also: str = "") -> None:
    """Installs the packages of every measurement, then those of this command's servers and
    engines.
    """
    needed = MEASURE | set(also.split())
    install(session, needed)
    printed = session.run_install(
        "python", "-m", "loadtests.extras", module, *arguments, silent=True, stderr=None, log=False
    )
    # None with --no-install; of vLLM's two extras EXTRAS has the one for this machine
    if more := set(str(printed or "").split()) & EXTRAS:
        if MACHINE.note and more & {"hf", "vllm-cpu"}:
            session.warn(MACHINE.note)
        install(session, needed | more)


class EveryExitCode(list[int]):
    """As `success_codes`, accepts each exit code and keeps it. A signal stays a failure."""

    def __contains__(self, code: object) -> bool:
        self += [code] if isinstance(code, int) and code >= 0 else []
        return code in self[-1:]


def run_module(
    session: nox.Session, module: str, *arguments: str, passing: Collection[int] = (0,)
) -> None:
    """Runs a module, and ends nox with the module's exit code unless that is `passing`. The module
    has printed what its exit code means; nox would call a complete campaign with an invalid case a
    failed command, and always end with 1. After Ctrl-C the module gets longer than nox's default of
    half a second, to stop the server and keep the results.
    """
    ended = EveryExitCode()
    try:
        session.run(
            *("python", "-m", module, *arguments),
            success_codes=ended,
            interrupt_timeout=120,
            terminate_timeout=30,
        )
    except nox.command.CommandFailed as failed:
        sys.exit(failed.return_code or 1)
    if ended and ended[-1] not in passing:
        sys.exit(ended[-1])


def local_wheels(session: nox.Session) -> list[str]:
    """The folders of wheels in pip's configuration, which uv does not read."""
    configured = subprocess.run(
        [f"{session.bin}/python", "-m", "pip", "config", "list"], capture_output=True, text=True
    ).stdout
    found = [
        line.partition("=")[2].strip(" '\"")
        for line in configured.splitlines()
        if line.split("=")[0].endswith(".find-links")
    ]
    found += os.environ.get("PIP_FIND_LINKS", "").split()
    links = (link for line in found for link in line.replace("\\n", " ").split())
    return list(dict.fromkeys(link for link in links if Path(link).is_dir()))


@nox.session
def bench(session: nox.Session) -> None:
    """Compare servers: run a campaign and make its report.

    `nox -s bench -- --help` lists the options.
    """
    install_for(session, "loadtests", *session.posargs)
    run_module(session, "loadtests", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """Test whether this machine's GPUs can be measured, in less than five minutes.

    Exit codes: 0 every check passed, 1 one failed or could not be made.
    """
    if GPU:
        install_for(session, "loadtests.gpu_selftest", *session.posargs)
    else:  # the engines are tested only on a GPU
        install(session, MEASURE)
    run_module(session, "loadtests.gpu_selftest", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests except the slow ones."""
    install(session)
    # Side by side: most of them wait for processes to start and to end.
    session.run(
        "python",
        "-m",
        "pytest",
        "-n",
        "4",
        "--dist",
        "loadgroup",
        "-m",
        "not slow",
        *session.posargs,
    )


@nox.session
def slow(session: nox.Session) -> None:
    """Run the slow tests, such as those with a real engine; each takes up to a minute."""
    install(session)
    session.run(
        "python",
        "-m",
        "pytest",
        "-n",
        "2",
        "--dist",
        "loadgroup",
        "-m",
        "slow and not alone",
        *session.posargs,
    )
    session.run(
        "python",
        "-m",
        "pytest",
        "-m",
        "slow and alone",
        *session.posargs,
        success_codes=[0, 5] if session.posargs else [0],
    )  # 5: none of those chosen is one


@nox.session
def lint(session: nox.Session) -> None:
    """Check the code, the pages of docs/, the workflows, the scripts and the pinned packages.

    Runs ruff and mypy, docs/generate.py, zizmor, shellcheck, and uv.
    """
    install(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("python", "docs/generate.py", "--check")
    session.run("zizmor", "--quiet", "--offline", ".")
    session.run("shellcheck", *shell_scripts())
    check_constraints(session)


def check_constraints(session: nox.Session) -> None:
    """Checks that each of the files pins every package for all Python versions. Leaves out the
    processor's torch: a folder of wheels often has it for one Python only, and PyPI's needs CUDA.
    """
    without = Path(session.create_tmp(), "excludes.txt")
    without.write_text("torch\n")
    for file in map(str, sorted(Path().glob("constraints-*.txt"))):
        on_cpu = file == "constraints-cpu.txt"
        extras = EXTRAS - {"vllm-cpu", "vllm-gpu"} | {"vllm-cpu" if on_cpu else "vllm-gpu"}
        resolved = session.run(
            *("uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "pyproject.toml"),
            # one resolution for the environments of pyproject.toml
            *("--universal", "--python-version", OLDEST_PYTHON, "--only-binary", ":all:"),
            *requirements_of(extras, file),
            *(["--excludes", str(without)] if on_cpu else []),
            silent=True,
            stderr=None,
        )
        wanted, pinned = (
            {line.partition(";")[0].strip() for line in text.splitlines()}
            for text in (str(resolved or ""), Path(file).read_text())
        )
        if missing := wanted - pinned:
            session.error(
                f"{file} lacks {', '.join(sorted(missing))}: add it, with a marker where other"
                " Pythons have another version, or none"
            )


def shell_scripts() -> list[str]:
    """The tracked files that a shell runs."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    found = []
    for file in filter(Path.is_file, map(Path, filter(None, tracked))):
        with file.open("rb") as content:
            first_line = content.readline()
        if file.suffix == ".sh" or re.match(rb"#!.*\b(ba|da)?sh\b", first_line):
            found.append(str(file))
    return found


@nox.session
def docs(session: nox.Session) -> None:
    """Write the generated pages of docs/: servers, scenarios, metrics, results format, commands."""
    install(session, MEASURE)
    session.run("python", "docs/generate.py", *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """Check the pinned packages for known vulnerabilities with pip-audit.

    Needs the public Python index, because mirrors rarely have advisories.
    """
    session.install("--quiet", "pip-audit")
    for file in sorted(Path().glob("constraints-*.txt")):
        out = Path(session.create_tmp(), f"{file.stem}.json")
        session.run(
            "pip-audit",
            "--disable-pip",
            "--no-deps",
            "--progress-spinner",
            "off",
            "--format",
            "json",
            "--output",
            str(out),
            "-r",
            str(file),
            success_codes=[0, 1],
            silent=True,
        )
        packages = json.loads(out.read_text())["dependencies"]
        audited = [package for package in packages if "vulns" in package]
        if not audited:
            session.error(
                f"nothing is known of any package in {file}: pip must ask the public Python index,"
                " without a mirror"
            )
        session.log(f"{file}: {len(audited)} of {len(packages)} packages are known")
        if bad := [
            f"{each['name']} {each['version']} ({', '.join(v['id'] for v in each['vulns'])})"
            for each in audited
            if each["vulns"]
        ]:
            session.error(f"{file}: vulnerable: {'; '.join(bad)}: raise them there")


@nox.session
def instrument(session: nox.Session) -> None:
    """Measure the load generator's own accuracy, and make the page of the results.

    Takes an hour and needs a quiet machine.
    """
    install_for(session, "loadtests.accuracy", *session.posargs)
    run_module(session, "loadtests.accuracy", *session.posargs)
    session.run("python", "-m", "analysis", "instrument", *folder_of_results(session))


@nox.session
def claims(session: nox.Session) -> None:
    """Test common claims about serving architectures: all campaigns, or some by name.

    All of them take almost four hours. Writes a new folder in results/.
    """
    install_for(session, "loadtests.claims", *session.posargs)
    run_module(session, "loadtests.claims", *session.posargs)


def folder_of_results(session: nox.Session) -> list[str]:
    """The value of --out; empty without that option."""
    pairs = zip(session.posargs, session.posargs[1:], strict=False)
    return [value for option, value in pairs if option == "--out"]


@nox.session
def faults(session: nox.Session) -> None:
    """Inject one fault at a time during a load, into each server and into Serveoff itself.

    Writes results/faults, and takes two hours.
    """
    install(session)
    run_module(session, "tests.studies.fault_campaign", *session.posargs)


@nox.session
def gate(session: nox.Session) -> None:
    """Compare the speed of head and base: `nox -s gate -- --base main`.

    Exit codes: 0 pass, 1 regressed, 2 invalid, 3 inconclusive.
    """
    install_for(session, "loadtests.gate", *session.posargs, also="revisions")
    run_module(session, "loadtests.gate", *session.posargs)


@nox.session
def baseline(session: nox.Session) -> None:
    """Measure the working tree, store a baseline in results/baselines, and plot their history."""
    command = ["loadtests.gate", "--record", *session.posargs]
    install_for(session, *command)
    run_module(session, *command)
    session.run("python", "-m", "analysis", "history")


@nox.session
def report(session: nox.Session) -> None:
    """Make the report of a campaign folder again (default: the newest in results/)."""
    install(session, {"analysis", "notebooks"})
    run_module(session, "analysis", "report", *session.posargs)
