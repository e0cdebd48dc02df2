"""The package versions in a manifest follow from the servers' requirements."""

from importlib import metadata

from loadtests.telemetry.packages import package_versions
from servers.runtime.catalog import ServerSpec, list_servers
from tests.helpers.installed import require_installed


def test_the_servers_requirements_and_their_dependencies_are_recorded() -> None:
    versions = package_versions()
    for module, name in (
        ("flask", "flask"),
        ("flup", "flup6"),
        ("uvicorn_worker", "uvicorn-worker"),
    ):
        require_installed(module)
        assert versions[name] == metadata.version(name)
    assert versions["werkzeug"] == metadata.version("werkzeug"), "Flask depends on it"


def test_each_installed_module_that_a_server_requires_is_recorded() -> None:
    versions = package_versions()
    installed = metadata.packages_distributions()
    for server in list_servers().values():
        for module in server.requires:
            for name in installed.get(module, ()):
                assert versions[name.lower().replace("_", "-")] == metadata.version(name)


def test_the_harness_own_packages_are_recorded() -> None:
    assert {"locust", "psutil", "pydantic", "prometheus-client"} <= package_versions().keys()


def test_a_server_from_elsewhere_adds_its_requirements() -> None:
    assert "pytest-timeout" not in package_versions()
    mine = ServerSpec("mine", "", (), ("simulated",), requires=("pytest_timeout", "no_such_module"))
    boxed = ServerSpec("boxed", "", (), ("simulated",), packages=("pytest-xdist[psutil]>=3",))
    versions = package_versions([mine, boxed])
    assert versions["pytest-timeout"] == metadata.version("pytest-timeout")
    assert versions["pytest-xdist"] == metadata.version("pytest-xdist")
