"""``convnet-show``"""

from __future__ import annotations

from collections.abc import Sequence

from ..cli import DONE, Parser, guarded, tolerate_encoding

WHATS = {
    "curves": "loss, error and learning rate of one run or several",
    "filters": "the filters of a layer, a block for each tower",
    "predictions": "eight validation images with their five most probable classes",
    "neighbours": "validation images with the six training images nearest to them in what the last layer reads, as fc7",
    "confusion": "which class is taken for which",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        "convnet-show",
        "Draws a figure of a run: learning curves (of several runs too), filters, predictions, nearest images, or\n"
        "which classes are mistaken for each other.",
        "convnet-show runs/first predictions --only-errors -o errors.png",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or a checkpoint; several for curves")
    parser.add_argument("what", choices=list(WHATS), metavar="WHAT", help="behind the runs, one of: " + _list(WHATS))
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where to: a name in .png or .svg")
    group = parser.add_argument_group("filters")
    group.add_argument("--jointly", action="store_true", help="one scale for all filters (default: each on its own)")
    group.add_argument(
        "--layer",
        metavar="NAME",
        help="of this layer, whose filters read 16 maps or fewer (default: the one that reads the images)",
    )
    group = parser.add_argument_group("predictions, neighbours, confusion")
    group.add_argument("--data", metavar="DATA", help="other data with the same classes (default: the run's)")
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, emu[:i] or cuda:i (default: auto)")
    group.add_argument("-b", "--batch-size", type=int, default=128, metavar="N", help="images at once (default: 128)")
    group.add_argument(
        "--views", type=int, choices=(1, 9, 10), default=1, metavar="{1,9,10}",
        help="the centre, or nine or ten views averaged; not for neighbours (default: 1)",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=0, metavar="N", help="chooses the images (default: 0)")
    group.add_argument("--only-errors", action="store_true", help="predictions: only images that are mistaken")
    group.add_argument("--queries", type=int, default=5, metavar="N", help="neighbours: validation images (default: 5)")
    group.add_argument(
        "--limit", type=int, metavar="N", help="neighbours: search among so many training images (default: all)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
    chosen = vars(parser.parse_intermixed_args(arguments))
    runs, what, output = (chosen.pop(name) for name in ("runs", "what", "output"))
    quiet, verbose = chosen.pop("quiet"), chosen.pop("verbose")
    tolerate_encoding()

    def work() -> int:
        from ..analysis.show import Options, show
        from ..output.console import Console

        console = Console(quiet, verbose)
        try:
            show(runs, what, output, Options(**chosen), console)
        finally:
            console.clear()
        console.say(f"written: {output}")
        return DONE

    return guarded(parser.prog, verbose, work)


def _list(whats: dict[str, str]) -> str:
    return "; ".join(f"{name} ({text})" for name, text in whats.items())


if __name__ == "__main__":
    raise SystemExit(main())
