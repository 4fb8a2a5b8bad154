"""Run a notebook with papermill and keep an executed copy whose bytes depend on its inputs alone."""

import json
import os
import re
from pathlib import Path
from typing import Any, TypeVar

from reperform import params, paths, tables
from reperform.errors import ReperformError
from reperform.stages import STAGES

T = TypeVar("T")
KERNEL_ENVIRONMENT = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "NO_COLOR": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}

# What differs from run to run in outputs, and what stands in its place.
UNSTABLE = (
    (re.compile(r"0x[0-9a-f]{6,16}"), "0x0"),
    (re.compile(r"(/[^\s\"']*)?/ipykernel_\d+/\d+\.py"), "<cell>"),
    (re.compile(r"T_[0-9a-f]{5}(?=[_\"\s#])"), "T_00000"),
)
UNSTABLE_METADATA = ("papermill", "execution", "collapsed", "scrolled", "widgets")


def section(kind: type[T], given: dict[str, Any] | None) -> T:
    """The stage's parameters inside a notebook: as papermill gave them, or from params.yaml when run by hand.

    Also moves to the project's root, so that a notebook behaves alike in JupyterLab and in the pipeline.
    """
    os.chdir(paths.project_root())
    if given is None:
        return params.load(kind)
    return params.build(kind, given, where="papermill")


def execute(name: str) -> Path:
    """Run `notebooks/<name>.ipynb` and write `reports/notebooks/<name>.ipynb`.

    A notebook that narrates a stage gets that stage's section of params.yaml as its one parameter, `given`.

    Raises:
        ReperformError: naming the cell that failed and where its output can be read.
    """
    import papermill  # noqa: PLC0415  # costs a second
    from papermill.exceptions import PapermillExecutionError  # noqa: PLC0415
    from traitlets.config import Config  # noqa: PLC0415

    os.environ.update(KERNEL_ENVIRONMENT)
    source = paths.notebooks() / f"{name}.ipynb"
    target = paths.reports() / "notebooks" / f"{name}.ipynb"
    partial = target.with_suffix(".partial.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(source),
            str(partial),
            parameters={"given": _given(name)},
            kernel_name="python3",
            progress_bar=False,
            log_output=False,
            request_save_on_cell_execute=False,
            cwd=str(paths.project_root()),
            # Local sockets instead of TCP: nobody else on the machine can listen in.
            config=Config({"KernelManager": {"transport": "ipc"}}),
            extra_arguments=["--log-level=50"],  # errors of cells arrive as such; the kernel's own talk is noise
        )
    except PapermillExecutionError as error:
        raise _cell_error(source, partial, error) from error
    tables.write_text(stable_text(partial.read_text(encoding="utf-8")), target)
    partial.unlink()
    return target


def stable_text(executed: str) -> str:
    """An executed notebook without times, random ids and addresses, in one canonical form."""
    notebook = json.loads(executed)
    for key in (*UNSTABLE_METADATA, "language_info"):
        notebook["metadata"].pop(key, None)
    for number, cell in enumerate(notebook["cells"]):
        _stabilise(cell, number)
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _stabilise(cell: dict[str, Any], number: int) -> None:
    for key in UNSTABLE_METADATA:
        cell["metadata"].pop(key, None)
    if "injected-parameters" in cell["metadata"].get("tags", []):
        cell["id"] = f"injected-parameters-{number}"
    if cell["cell_type"] != "code":
        return
    cell["outputs"] = _joined_streams(cell["outputs"])
    for output in cell["outputs"]:
        if "text" in output:
            output["text"] = _stable(output["text"])
        data = output.get("data", {})
        data.pop("application/vnd.jupyter.widget-view+json", None)
        for mime in [m for m in data if m.startswith("text/") or m == "image/svg+xml"]:
            data[mime] = _stable(data[mime])


def _joined_streams(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One stdout and one stderr per cell: how the kernel cuts a stream into pieces differs from run to run."""
    joined: list[dict[str, Any]] = []
    streams: dict[str, dict[str, Any]] = {}
    for output in outputs:
        name = output.get("name") if output["output_type"] == "stream" else None
        if name in streams:
            streams[name]["text"] = _text(streams[name]["text"]) + _text(output["text"])
            continue
        if name:
            streams[name] = output
        joined.append(output)
    return joined


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def _stable(value: str | list[str]) -> str:
    text = _text(value)
    for pattern, replacement in UNSTABLE:
        text = pattern.sub(replacement, text)
    return text


def _given(name: str) -> dict[str, Any] | None:
    stage = next((stage.name for stage in STAGES if stage.notebook == name), None)
    if stage is None:
        return None
    params.load(params.SECTIONS[stage])  # refuse a wrong value before a kernel is started
    return dict(params.raw(paths.params_file())[stage])


def _cell_error(source: Path, partial: Path, error: Any) -> ReperformError:
    # An error that was explained in the kernel arrives as the text of an exception: hand it on, without its traceback.
    if error.ename == "ReperformError":
        return ReperformError(str(error.evalue))
    return ReperformError(
        f"Notebook {source.name} failed.",
        expected="every cell to run",
        got=f"{error.ename}: {error.evalue}",
        where=f"cell {error.exec_count} of {source.name}; its output so far is in {partial}",
        fix="run the stage with --module for the bare error, or open the notebook with `make lab`",
    )
