"""Runs the notebooks of analysis/notebooks on a campaign: notebooks/*.ipynb in its folder, and
.html that needs no network.
"""

import os
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from traitlets.config import Config

SOURCES = Path(__file__).parents[1] / "notebooks"
# Without other folders of kernels "python3" is the ipykernel of this interpreter, whatever the user
# has installed. What it says to us is encrypted where it can be: its ports are open to everybody on
# this machine.
KERNEL = Config(
    {"KernelSpecManager": {"kernel_dirs": []}, "KernelManager": {"transport_encryption": "auto"}}
)
# nbconvert's page loads RequireJS, MathJax, Mermaid and widgets from CDNs; nothing here uses them.
OFFLINE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js_requirejs %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
"""


def run_notebooks(campaign: Path, timeout_s: int = 600) -> list[Path]:
    """Executes every notebook on the campaign's folder and returns the .html files. A cell that
    raises is an error (nbclient.exceptions.CellExecutionError): a notebook that no longer fits the
    code must not look like a result.
    """
    target = campaign / "notebooks"
    target.mkdir(exist_ok=True)
    made = []
    for source in sorted(SOURCES.glob("*.py")):
        notebook = jupytext.read(source)
        root = Path(__file__).parents[2]
        environment = os.environ | {
            "SERVEOFF_CAMPAIGN": str(campaign.resolve()),
            "PYTHONPATH": str(root),
        }
        resources = {"metadata": {"path": str(root)}}
        client = NotebookClient(
            notebook, kernel_name="python3", config=KERNEL, timeout=timeout_s, resources=resources
        )
        client.execute(env=environment)
        nbformat.write(notebook, target / f"{source.stem}.ipynb")
        html, _ = HTMLExporter(raw_template=OFFLINE).from_notebook_node(
            notebook, {"metadata": {"name": source.stem}}
        )
        made.append(target / f"{source.stem}.html")
        made[-1].write_text(html)
    return made
