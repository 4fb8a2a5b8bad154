"""Reports that an auditor can rely on: templates filled from outputs alone, rendered into self-contained pages."""

import json
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateNotFound
from jinja2.exceptions import TemplateError
from omegaconf import OmegaConf

from reperform import notebooks, paths, tables
from reperform.errors import ReperformError, nearest
from reperform.params import ReportParams, raw
from reperform.report import pages, render
from reperform.report.evidence import Evidence
from reperform.report.narration import as_markdown
from reperform.stages import STAGES

# These two notebooks narrate outputs and no stage of their own, so the report stage runs them.
READING_NOTEBOOKS = ("00_tour", "03_featurize")
PAGE_TITLES = {
    "index": "Overview",
    "model": "Model report",
    "alerts": "Alerts",
    "data_quality": "Data quality",
    "filings": "Filings",
    "monitoring": "Monitoring",
    "audit": "Audit",
}


@dataclass(frozen=True)
class Page:
    """A page to render: its source in `reports/build/`, and the name of the HTML file that it becomes."""

    source: Path
    name: str


def navigation(names: Sequence[str], notebook_names: Sequence[str]) -> str:
    """Links to every report and every notebook, as markdown."""
    reports = " · ".join(f"[{PAGE_TITLES.get(name, name)}]({name}.html)" for name in names)
    read = " · ".join(f"[{name[3:]}]({name}.html)" for name in notebook_names)
    return f"::: {{.navigation}}\n{reports}\n\nNotebooks: {read}\n:::"


def filled(template: str, folder: Path, evidence: Evidence, context: dict[str, Any]) -> str:
    """A template with its values: markdown in which nothing is computed any more.

    Raises:
        ReperformError: for a page without a template, or a template that asks for what does not exist.
    """
    environment = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        # `{#` opens the attributes of headings and tables in markdown
        comment_start_string="<!--#",
        comment_end_string="#-->",
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701  # the output is markdown; values are escaped for it by Evidence
    )
    try:
        return environment.get_template(f"{template}.qmd").render(e=evidence, **context)
    except TemplateNotFound as error:
        known = sorted(path.stem for path in folder.glob("[!_]*.qmd"))
        raise ReperformError(
            f"There is no report page {template!r}.",
            expected="a page with a template in reports/templates/",
            got=f"{template}.qmd",
            where="params.yaml:report.pages",
            fix=nearest(template, known),
        ) from error
    except TemplateError as error:
        raise ReperformError(
            f"Template {template}.qmd cannot be filled.",
            expected="names that the report stage provides",
            got=str(error),
            where=f"reports/templates/{template}.qmd",
            fix="mend the template and run `dvc repro report`",
        ) from error


def write_pages(params: ReportParams, root: Path, build: Path, menu: str) -> list[Page]:
    """Fill every template that the parameters name, and write `reports/build/<page>.qmd` with its figures."""
    written = []
    for name in params.pages:
        evidence = Evidence(root, build / f"{name}_files")
        context = {"params": params, "menu": menu, "page": pages, "root": root, **_helpers(root)}
        text = filled(name, root / "reports" / "templates", evidence, context)
        written.append(Page(tables.write_text(text, build / f"{name}.qmd"), name))
    return written


def _helpers(root: Path) -> dict[str, Any]:
    """What templates may call: figures by stage, and the functions with which stages arrange their own documents."""
    from reperform import quality  # noqa: PLC0415  # heavy, and only this stage needs them all
    from reperform.explain import receipts  # noqa: PLC0415
    from reperform.figures import evaluate, explain, filings, forecast, monitor, validate  # noqa: PLC0415

    content = {key: value for key, value in raw(root / "params.yaml").items() if key != "compose"}
    modules = (evaluate, explain, filings, forecast, monitor, validate)
    drawn = {module.__name__.rsplit(".", maxsplit=1)[-1]: module for module in modules}
    return {
        "figures": drawn,
        "limits": (content["monitor"]["warn_above"], content["monitor"]["act_above"]),
        "parameters": OmegaConf.to_yaml(OmegaConf.create(content)).strip(),
        "quality": quality,
        "receipts": receipts,
    }


def write_notebook_pages(executed: Iterable[Path], build: Path, menu: str) -> list[Page]:
    """Write each executed notebook as a page."""
    written = []
    for notebook in executed:
        text = as_markdown(notebook, build / f"{notebook.stem}_files")
        head, body = text.split("\n---\n", maxsplit=1)
        text = f"{head}\n---\n\n{menu}\n{body}"
        written.append(Page(tables.write_text(text, build / f"{notebook.stem}.qmd"), notebook.stem))
    return written


def render_all(written: Sequence[Page], site: Path, renderer: render.Renderer) -> None:
    """Render every page; two at a time, since the renderer is a process of its own."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda page: render.render(page.source, site / f"{page.name}.html", renderer), written))


def run(params: ReportParams) -> None:
    """Run the notebooks that only read, fill the templates, render everything, and name the renderer."""
    root, build, site = paths.project_root(), paths.reports() / "build", paths.reports() / "site"
    for folder in (build, site):
        shutil.rmtree(folder, ignore_errors=True)
    narrated = sorted([*READING_NOTEBOOKS, *(stage.notebook for stage in STAGES if stage.notebook)])
    for name in READING_NOTEBOOKS:
        notebooks.execute(name)
    menu = navigation(params.pages, narrated)
    written = write_pages(params, root, build, menu)
    written += write_notebook_pages((paths.reports() / "notebooks" / f"{n}.ipynb" for n in narrated), build, menu)
    renderer = render.find_renderer()
    render_all(written, site, renderer)
    about = {"name": renderer.name, "version": renderer.version}
    tables.write_text(json.dumps(about, sort_keys=True) + "\n", build / "renderer.json")
