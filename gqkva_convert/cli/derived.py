"""Commands whose options are the parameters of the public function of their name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
import typer.main

import gqkva_convert
from gqkva_convert.cli.options import JSON, help_of
from gqkva_convert.errors import TrainingError
from gqkva_convert.options import Option, keywords, options_of

# What a command does: is given its function's arguments, and whether the result is printed as JSON.
Body = Callable[[dict[str, Any], bool], None]


def body_of(name: str) -> Body:
    """Return what a command does."""
    module = importlib.import_module(f"gqkva_convert.cli.{name}")
    body: Body = getattr(module, f"{name}_command")
    return body


def derived_command(name: str) -> Any:
    """Return the command of a public function's name, as Typer makes it."""
    body, options = body_of(name), options_of(getattr(gqkva_convert, name))

    def call(as_json: bool, **given: Any) -> None:
        body(_arguments(options, given), as_json)

    parameters = [*(_parameter(name, option) for option in options), JSON]
    # Typer does not see the parameters of `call`, but these.
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
    # Files of settings were called recipes once.
    renamed = {"token_normalize_func": lambda token: "settings" if token == "recipe" else token}
    app.command(name=name, help=inspect.getdoc(body), context_settings=renamed)(call)
    return typer.main.get_command(app)


def _arguments(options: tuple[Option, ...], given: dict[str, Any]) -> dict[str, Any]:
    """Return what to call the function with."""
    pairs = {option.name: option for option in options if option.takes == "pairs"}
    try:
        given |= {name: option.read(given[name] or ()) for name, option in pairs.items()}
    except ValueError as error:
        raise TrainingError(str(error)) from error
    return keywords(options, given)


def _parameter(command: str, option: Option) -> inspect.Parameter:
    """Return the parameter that Typer makes an argument or option of."""
    shown = help_of(command, option.name)
    kind: Any = list[option.kind] if option.is_repeated else option.kind  # type: ignore[name-defined]
    default: Any = option.default
    if isinstance(default, (tuple, list)):
        default = (list(default) or None) if option.is_repeated else ",".join(map(str, default)) or None
    elif default is not None:
        default = option.kind(default)
    info: Any
    if option.is_argument:
        info = typer.Argument(help=shown.help, metavar=shown.metavar, show_default=False)
    else:
        off = f"/--no-{option.flag[2:]}" if option.kind is bool and default else ""
        info = typer.Option(f"{option.flag}{off}", help=shown.help, metavar=shown.metavar)
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if option.is_required else default,
        annotation=Annotated[kind if option.is_required or default is not None else kind | None, info],
    )
