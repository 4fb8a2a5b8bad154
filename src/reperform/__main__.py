"""The command line: `python -m reperform <stage>` runs one stage; `--help` explains them all."""

import argparse
import sys
from collections.abc import Sequence

from reperform import __version__, commands
from reperform.errors import ReperformError
from reperform.stages import STAGES

EPILOG = "`dvc repro` runs every stage that is out of date, in order. Reports: reports/site/index.html"


def parser() -> argparse.ArgumentParser:
    """The parser, with one command per stage and one per extra command."""
    root = argparse.ArgumentParser(prog="python -m reperform", description=__doc__, epilog=EPILOG)
    root.add_argument("--version", action="version", version=__version__)
    sub = root.add_subparsers(dest="command", required=True, metavar="command", title="stages and commands")
    for stage in STAGES:
        one = sub.add_parser(stage.name, help=stage.summary, description=f"{stage.summary}. Writes {stage.writes}.")
        if stage.per_detector:
            one.add_argument("detector", help="a name in params.yaml:train.detectors")
        if stage.notebook:
            one.add_argument("--module", action="store_true", help="run the module alone, without its notebook")
        one.set_defaults(call=commands.run_stage, stage=stage)
    commands.add_commands(sub)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 after an error that was explained."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.call(arguments) or 0)
    except ReperformError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
