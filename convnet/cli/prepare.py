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
    group.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="their shorter side (default: 256; of py-colmajor as it is, where all have one)",
    )
    group.add_argument(
        "--keep-aspect", action="store_true", help="store whole images instead of their centre squares, which are used"
    )
    group.add_argument("--quality", type=int, metavar="N", help="of the JPEG files, 1..100 (default: 95)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="shuffles the training images (default: 0)")
    group.add_argument(
        "--val-split", type=float, metavar="X",
        help="share of every class held out for validation where SRC has no images for it (default: 0.1)",
    )  # fmt: skip
    group = parser.add_argument_group("what is made")
    group.add_argument(
        "--format", choices=("store", "py-colmajor"), default="store",
        help="a store, or data batches as cuda-convnet had them, pickled columns of pixels with their mean image, "
        "which it and convnet-train take (default: store)",
    )  # fmt: skip
    group.add_argument(
        "--per-batch", type=int, metavar="N",
        help="pictures in a data batch of py-colmajor, where SRC does not come in batches (default: 10000)",
    )  # fmt: skip
    group = parser.add_argument_group("running")
    group.add_argument("-j", "--workers", type=int, metavar="N", help="processes (default: all usable cores)")
    parser.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
    chosen = parser.parse_args(arguments)
    tolerate_encoding()

    def work() -> int:
        from ..output.console import Console
        from ..prepare import colmajor
        from ..prepare.packers import usable_cores
        from ..prepare.prepare import Options, run

        workers = usable_cores() if chosen.workers is None else chosen.workers
        console = Console(chosen.quiet, chosen.verbose)
        source, target = Path(chosen.source), Path(chosen.target)
        if chosen.format == "py-colmajor":
            if chosen.keep_aspect or chosen.quality is not None:
                option = "--keep-aspect" if chosen.keep_aspect else "--quality"
                raise ValueError(f"{option} is for a store; the pictures of py-colmajor are squares of pixels")
            batches = colmajor.Options(chosen.size, chosen.per_batch, chosen.seed, chosen.val_split)
            return colmajor.run(source, target, batches, workers, console)
        if chosen.per_batch is not None:
            raise ValueError("--per-batch is for --format py-colmajor; a store has files of its own size")
        quality = 95 if chosen.quality is None else chosen.quality
        options = Options(256 if chosen.size is None else chosen.size, quality, chosen.seed, chosen.keep_aspect)
        return run(source, target, options, workers, console, chosen.val_split)

    return guarded(parser.prog, chosen.verbose, work)


if __name__ == "__main__":
    raise SystemExit(main())
