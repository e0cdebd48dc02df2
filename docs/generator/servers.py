"""docs/servers.md: every server by family, and the engines."""

import ast
import re

from generator.text import View, code, escape, join_codes
from servers.runtime import catalog, engine_specs


def view() -> View:
    families: dict[str, list[View]] = {}
    for server in catalog.sort_by_family():
        families.setdefault(server.family.capitalize(), []).append(describe_server(server))
    return {
        "families": families,
        "overview": [
            [
                name,
                catalog.FAMILIES[name.lower()],
                ", ".join(f"[{s['name']}](#{s['name']})" for s in servers),
            ]
            for name, servers in families.items()
        ],
        "engines": [describe_engine(name, engine) for name, engine in engine_specs.ENGINES.items()],
    }


def describe_engine(name: str, engine: engine_specs.EngineSpec) -> list[str]:
    """A row, with the first paragraph of the engine's docstring. The module is not imported."""
    docstring = engine.about
    if not docstring:
        source = (catalog.FOLDER / "engines" / f"{name}.py").read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(source)) or ""
    kinds, extras = ", ".join(engine.classes) or "none", join_codes(engine.extras)
    one_of = "one of " * (len(engine.extras) > 1)
    return [code(name), escape(docstring.partition("\n\n")[0]), kinds, one_of + (extras or "none")]


def describe_server(server: catalog.ServerSpec) -> View:
    folder = catalog.FOLDER / server.name
    when = re.search(
        r"^\*\*When\b[^*]*\*\*:?\s*(.+?)(?=\n\*\*|\n\n|\Z)",
        (folder / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    facts = {
        "Engines": join_codes(server.engines),
        "Transports": join_codes(server.transports),
        "Extras": join_codes(server.extras) or ("" if server.packages else "none of its own"),
        "Requires": join_codes(server.requires),
        "Packages in an environment of its own": join_codes(server.packages),
        "Further processes": join_codes(server.processes),
        "In front of": describe_upstream(server),
        "Checks that it cannot pass": join_codes(server.waives),
    }
    return {
        "name": server.name,
        "summary": escape(server.summary),
        "when": " ".join(when[1].split()) if when else "",
        "facts": {name: value for name, value in facts.items() if value},
        "options": list_options(server),
    }


def describe_upstream(server: catalog.ServerSpec) -> str:
    names = dict.fromkeys(server.upstream.values())
    if len(names) > 1:
        pairs = server.upstream.items()
        return ", ".join(f"{code(name)} with {code(engine)}" for engine, name in pairs)
    return "".join(
        f"the server of the option {code(name[1:-1])}" if name.startswith("{") else code(name)
        for name in names
    )


def list_options(server: catalog.ServerSpec) -> list[list[str]]:
    """Rows; an option's meaning is the comment behind its values in server.toml."""
    toml = (catalog.FOLDER / server.name / "server.toml").read_text(encoding="utf-8")
    meanings = dict(re.findall(r"^(\w+)\s*=\s*\[[^\]]*\]\s*#\s*(.+)$", toml, re.MULTILINE))
    rows = [
        [code(name), code(values[0]), join_codes(values[1:]), escape(meanings.get(name, ""))]
        for name, values in server.options.items()
    ]
    return rows + [
        [
            code(name),
            code(option.default)
            if re.fullmatch(option.pattern, option.default)
            else option.default,
            option.kind,
            escape(option.meaning),
        ]
        for name, option in server.open_options.items()
    ]
