"""The command `mixcontrast`."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; errors of the user's are one line and exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        from mixcontrast import __version__

        print(f"mixcontrast {__version__}")
        return
    try:
        from jsonargparse import auto_cli

        from mixcontrast.demo import demo
    except ImportError as error:
        raise SystemExit(
            f"mixcontrast: the command needs packages that the library does not. {error}; "
            "pip install 'mixcontrast[demo]'"
        ) from None
    try:
        auto_cli({"demo": demo}, args=arguments, prog="mixcontrast", description=__doc__)
    except (ValueError, TypeError, ModuleNotFoundError) as error:
        raise SystemExit(f"mixcontrast: {error}") from None


if __name__ == "__main__":
    main()
