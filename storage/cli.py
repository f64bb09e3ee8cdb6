"""The command `inpaintd`: joins the command groups that the installed parts bring."""

from __future__ import annotations

from importlib.metadata import entry_points

import typer

from storage.settings import use_local_installation

COMMANDS_GROUP = "inpaintd.commands"


def main() -> None:
    use_local_installation()
    app = typer.Typer(name="inpaintd", no_args_is_help=True, help="Operate an inpaintd installation.")

    @app.callback()
    def root() -> None:
        """Keep group names even where only one part is installed."""

    for point in sorted(entry_points(group=COMMANDS_GROUP), key=lambda each: each.name):
        try:
            app.add_typer(point.load(), name=point.name)
        except ModuleNotFoundError as error:
            app.command(point.name, help=f"Not here: needs the package {error.name}.", hidden=True)(_missing)
    app()


def _missing() -> None:
    raise typer.BadParameter("This part of inpaintd is not installed here.")
