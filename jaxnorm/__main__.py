"""`python -m jaxnorm`: batch norm or instance norm, and when? The experiment of `jaxnorm.demo`."""

import sys

from jaxnorm.demo import missing_packages


def main() -> None:
    """Runs the command line, or says how to install what it needs."""
    if missing := missing_packages():
        print(
            f"The demo needs {', '.join(missing)}, not installed here: run  pip install '.[demo]'  in a checkout of "
            f"the repository.",
            file=sys.stderr,
        )
        sys.exit(2)
    from jaxnorm.demo.cli import app

    app(prog_name="python -m jaxnorm")


if __name__ == "__main__":
    main()
