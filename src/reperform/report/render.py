"""Turn a markdown-only `.qmd` into one self-contained HTML file. The only module that calls Quarto and pandoc."""

import os
import re
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory

from reperform import tables
from reperform.errors import ReperformError

# Bootswatch themes, default math and any text/html output fetch from the network: none of them here.
QUARTO_FORMAT = {
    "theme": "default",
    "html-math-method": "mathml",
    "embed-resources": "true",
    "toc": "true",
    "toc-depth": "3",
    "number-sections": "true",
}
PANDOC_OPTIONS = (
    "--from=markdown",
    "--to=html5",
    "--standalone",
    "--embed-resources",
    "--toc",
    "--toc-depth=3",
    "--number-sections",
    "--mathml",
    "--metadata=link-citations=true",
    "--fail-if-warnings",
)


@dataclass(frozen=True)
class Renderer:
    """The program that renders, as it is named in the manifest."""

    name: str
    version: str
    program: str


def find_renderer() -> Renderer:
    """Quarto where it is installed, else the pandoc that came with the environment.

    `REPERFORM_RENDERER=pandoc` leaves an installed Quarto aside.
    """
    quarto = shutil.which("quarto")
    if quarto and os.environ.get("REPERFORM_RENDERER") != "pandoc":
        return Renderer("quarto", _output([quarto, "--version"]), quarto)
    import pypandoc  # noqa: PLC0415  # looks for its binary while importing

    program = pypandoc.get_pandoc_path()
    return Renderer("pandoc", str(pypandoc.get_pandoc_version()), program)


def render(source: Path, target: Path, renderer: Renderer) -> Path:
    """Render one `.qmd` into `target`; figures are found beside the source and embedded.

    Raises:
        ReperformError: for an unresolved cross-reference, a missing citation or image, with the renderer's own words.
    """
    html = _with_quarto(source, renderer) if renderer.name == "quarto" else _with_pandoc(source, renderer)
    return tables.write_bytes(html, target)


def _with_pandoc(source: Path, renderer: Renderer) -> bytes:
    package = files("reperform.report")
    with ExitStack() as stack:
        style = stack.enter_context(as_file(package / "report.css"))
        subset = stack.enter_context(as_file(package / "quarto_subset.lua"))
        command = [renderer.program, *PANDOC_OPTIONS, f"--css={style}", f"--lua-filter={subset}", "--citeproc"]
        got = subprocess.run(  # noqa: S603  # program and arguments are ours
            [*command, source.name], cwd=source.parent, capture_output=True, check=False
        )
    if got.returncode:
        raise _refused(source, renderer, got.stderr.decode(errors="replace"))
    return got.stdout


def _with_quarto(source: Path, renderer: Renderer) -> bytes:
    with TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        shutil.copytree(source.parent, work)
        options = [part for key, value in QUARTO_FORMAT.items() for part in ("--metadata", f"{key}:{value}")]
        got = subprocess.run(  # noqa: S603  # program and arguments are ours
            [renderer.program, "render", source.name, "--to", "html", "--no-execute", *options],
            cwd=work,
            capture_output=True,
            check=False,
        )
        message = got.stderr.decode(errors="replace")
        # Quarto exits 0 on an unresolved reference, a missing citation or image, and only warns.
        if got.returncode or re.search(r"\bWARN", message):
            raise _refused(source, renderer, message)
        return (work / source.with_suffix(".html").name).read_bytes()


def _refused(source: Path, renderer: Renderer, message: str) -> ReperformError:
    return ReperformError(
        f"Report {source.stem} could not be rendered.",
        expected="resolved references, citations and images",
        got=message.strip()[-600:],
        where=f"{source.name}, {renderer.name} {renderer.version}",
        fix="mend the template in reports/templates/ and run `dvc repro report`",
    )


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
