"""The command `mixcontrast`. Commands that read a recipe have their own help: `mixcontrast fit --help`,
`mixcontrast study --help`, `mixcontrast explain --help`."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; errors of the user's are one line and exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        from mixcontrast import __version__

        print(f"mixcontrast {__version__}")
        return
    if arguments[:1] in (["fit"], ["explain"], ["study"]):
        _of_recipes(*arguments[:1], arguments[1:])
        return
    extras = {
        "evaluate": "evaluate", "evaluate_run": "evaluate", "compare": "evaluate", "embed": "embed",
        "ensemble": "embed", "judge": "clip",
    }  # fmt: skip
    extra = extras.get("".join(arguments[:1]), "demo")
    try:
        from jsonargparse import auto_cli

        from mixcontrast.commands.evaluate import compare_command, evaluate_command, evaluate_run_command
        from mixcontrast.commands.options import CommandParser, gathered

        commands = {"evaluate": evaluate_command, "evaluate_run": evaluate_run_command, "compare": compare_command}
        if extra != "evaluate":  # which needs no encoder
            from mixcontrast.commands.embed import embed_command
            from mixcontrast.commands.ensemble import ensemble_command
            from mixcontrast.commands.judge import judge_command

            commands = {
                "embed": embed_command, "judge": gathered(judge_command), "ensemble": gathered(ensemble_command),
                **commands,
            }  # fmt: skip
        if extra == "demo":  # its packages are many: training, images, pictures
            from mixcontrast.commands.demo import demo

            commands = {"demo": demo, **commands}
    except ImportError as error:
        raise SystemExit(
            f"mixcontrast: the command needs packages that the library does not. {error}; "
            f"pip install 'mixcontrast[{extra}]'"
        ) from None
    try:
        auto_cli(
            commands, args=arguments, prog="mixcontrast", description=__doc__, parser_class=CommandParser
        )
    except (ValueError, TypeError, ImportError) as error:
        raise SystemExit(f"mixcontrast: {error}") from None


def _of_recipes(command: str, arguments: list[str]) -> None:
    """The commands that read a recipe."""
    extra = {"fit": "fit", "explain": "fit,report", "study": "study"}[command]
    try:
        if command == "fit":
            from mixcontrast.commands.fit import fit_command as run
        elif command == "explain":
            from mixcontrast.commands.explain import explain_command as run
        else:
            from mixcontrast.commands.study import study_command as run
    except ImportError as error:
        raise SystemExit(
            f"mixcontrast: {command} needs packages that the library does not. {error}; "
            f"pip install 'mixcontrast[{extra}]'"
        ) from None
    try:
        run(arguments)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"mixcontrast: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
