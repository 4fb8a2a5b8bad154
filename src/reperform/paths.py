"""Where things are. One folder per stage below `data/`; everything else is named once, here."""

from pathlib import Path

from reperform.errors import ReperformError

DVC_FILE = "dvc.yaml"


def project_root() -> Path:
    """The folder that holds `dvc.yaml`: the current folder or the nearest one above it.

    Raises:
        ReperformError: when no folder up to the top holds one.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / DVC_FILE).is_file():
            return folder
    raise ReperformError(
        "This is not a Reperform project.",
        expected=f"{DVC_FILE} in the current folder or above it",
        got="none",
        where=str(here),
        fix="go to the folder that you cloned, and run the command again",
    )


def data(stage: str) -> Path:
    """The folder that a stage writes to."""
    return project_root() / "data" / stage


def reports() -> Path:
    """The folder of templates, rendered reports and executed notebooks."""
    return project_root() / "reports"


def notebooks() -> Path:
    """The folder of notebook sources, stored without outputs."""
    return project_root() / "notebooks"


def params_file() -> Path:
    """The parameters that stages read: composed from `conf/`, never edited by hand."""
    return project_root() / "params.yaml"
