"""``convnet-prepare``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..cli import Parser, guarded, tolerate_encoding


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        "convnet-prepare",
        "Packs images for training: decoded, brought to one size, shuffled, checked, in a few large files with index,\n"
        "mean image and colour statistics. Stopped (exit code 75 where finished parts are kept, else 130 or 143) or\n"
        "killed, the same command goes on where it was.\n"
        "SRC: a folder of pictures (CLASS/*, or train/CLASS/* and val/CLASS/*, or pictures and a CSV file of labels),\n"
        "a CSV file of paths and labels, or what others published: ILSVRC-2012 archives (with synsets.txt, line k:\n"
        "the WordNet id of class number k), CIFAR batches, IDX, .npz and Parquet files, WebDataset shards.\n"
        "DST: a new or empty folder, which convnet-train takes.",
        "convnet-prepare photos/ photos-256/ --size 256 --quality 95",
    )
    parser.add_argument("source", metavar="SRC", help="where the images are")
    parser.add_argument("target", metavar="DST", help="the folder to be made")
    group = parser.add_argument_group("images")
    group.add_argument("--size", type=int, default=256, metavar="N", help="their shorter side (default: 256)")
    group.add_argument(
        "--keep-aspect", action="store_true", help="store whole images instead of their centre squares, which are used"
    )
    group.add_argument("--quality", type=int, default=95, metavar="N", help="of the JPEG files, 1..100 (default: 95)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="shuffles the training images (default: 0)")
    group.add_argument(
        "--val-split", type=float, metavar="X",
        help="share of every class held out for validation where SRC has no images for it (default: 0.1)",
    )  # fmt: skip
    group = parser.add_argument_group("running")
    group.add_argument("-j", "--workers", type=int, metavar="N", help="processes (default: all usable cores)")
    parser.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
    chosen = parser.parse_args(arguments)
    tolerate_encoding()

    def work() -> int:
        from ..output.console import Console
        from ..prepare.packers import usable_cores
        from ..prepare.prepare import Options, run

        options = Options(chosen.size, chosen.quality, chosen.seed, chosen.keep_aspect)
        workers = usable_cores() if chosen.workers is None else chosen.workers
        console = Console(chosen.quiet, chosen.verbose)
        return run(Path(chosen.source), Path(chosen.target), options, workers, console, chosen.val_split)

    return guarded(parser.prog, chosen.verbose, work)


if __name__ == "__main__":
    raise SystemExit(main())
