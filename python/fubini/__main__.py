"""Command line: ``python -m fubini`` describes the build, ``demo`` runs the demo, ``check`` looks at a model."""

import argparse
import sys
from collections.abc import Sequence

import fubini


def describe() -> str:
    """Return version, kernel build, instruction set and threads, one per line."""
    info = fubini.build_info()
    return "\n".join(
        [
            f"fubini {info['version']}: {fubini.__doc__.splitlines()[0] if fubini.__doc__ else ''}",
            f"  kernel           C++, compiler {info['compiler']}",
            f"  instruction set  {info['isa']} (the CPU has {', '.join(info['supported_isas'])})",
            f"  threads          {info['threads']}",
            f"  Python           {info['python']}",
            "Try: python -m fubini demo",
        ]
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m fubini",
        description="Quantum natural gradient for hybrid PyTorch + PennyLane models. Without a command: version, "
        "kernel build, instruction set and threads.",
    )
    result.add_argument("--version", action="version", version=f"fubini {fubini.__version__}")
    commands = result.add_subparsers(dest="command", metavar="command")
    demo = commands.add_parser(
        "demo",
        help="train a circuit, a molecule and a hybrid classifier by SGD, Adam and QNG",
        description="Train a circuit, the H2 molecule and a hybrid classifier of handwritten digits by SGD, Adam and "
        "QNG, and the classifier as PennyLane runs it; print a table and draw the training curves.",
    )
    demo.add_argument(
        "--output", default="fubini_demo.png", metavar="FILE", help="picture (default: %(default)s)"
    )
    demo.add_argument("--quick", action="store_true", help="a few steps each, in seconds")
    demo.add_argument("--only", choices=("circuit", "molecule", "digits"), help="one case")
    demo.add_argument(
        "--tune",
        action="store_true",
        help="instead of the demo, search the learning rates that it uses on their grids (minutes)",
    )
    check = commands.add_parser(
        "check",
        help="what of a model of yours would run natively, what not, and why",
        description="Call a model once and say of each layer how it runs: compiled, in every call, or on its "
        "PennyLane device, and why; and which layers have no rule for a Fisher matrix.",
    )
    check.add_argument(
        "model",
        metavar="FILE.py:NAME",
        help="a function without arguments that returns the model, or it and an example of its inputs; or the model",
    )
    check.add_argument(
        "--inputs", metavar="N,M", type=_shape, help="shape of random inputs, such as 8,4"
    )
    return result


def _shape(text: str) -> tuple[int, ...]:
    shape = tuple(int(part) for part in text.split(","))
    if min(shape) < 1:
        raise ValueError(text)
    return shape


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Without the program's name; None for those of the process.

    Returns:
        The exit status.
    """
    options = parser().parse_args(arguments)
    if options.command is None:
        print(describe())
        return 0
    try:
        if options.command == "check":
            from fubini.demo.check import check

            print(check(options.model, options.inputs))
        else:
            from fubini import demo  # PennyLane's chemistry takes a second to import

            if options.tune:
                demo.tune(only=options.only, quick=options.quick)
            else:
                demo.run(options.output, only=options.only, quick=options.quick)
    except (ImportError, TypeError, ValueError) as error:
        print(f"python -m fubini {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
