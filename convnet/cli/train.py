"""``convnet-train``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..cli import Parser, guarded, in_group, tolerate_encoding


def _parser() -> Parser:
    from ..network.networks import network
    from ..training.config import OPTIONS, Config

    parser = Parser(
        "convnet-train",
        "Trains a network on labelled images; without arguments a small one on drawn shapes, in minutes on two cores.\n"
        "DATA: shapes (generated), a folder of pictures (CLASS/*, or train/CLASS/* and val/CLASS/*, or pictures and a\n"
        "CSV file of labels), what convnet-prepare made, or what others published: CIFAR batches, IDX, .npz and\n"
        "Parquet files, WebDataset shards.",
        "convnet-train shapes --model alexnet-tiny --epochs 6 --device cpu -o runs/first",
    )
    defaults = Config().resolved(network(Config.model).defaults, network(Config.model).crop)
    groups: dict[str, Any] = {"data": parser.add_argument_group("data")}
    for name, option in OPTIONS.items():
        group = groups.setdefault(option.group, None) or parser.add_argument_group(option.group)
        groups[option.group] = group
        if option.kind in (list, dict):
            continue
        if option.kind is bool:
            action = "store_false" if getattr(Config(), name) else "store_true"
            group.add_argument(*option.flags, dest=name, action=action, default=None, help=option.help)
            continue
        value, own = getattr(defaults, name), getattr(Config(), name) is not None
        default = option.unset if value is None else value if own else f"the network's; {Config.model}: {value}"
        text = f"{option.help} (default: {default})"
        if not option.flags:
            group.add_argument(name, nargs="?", default=None, metavar=name.upper(), help=text)
            continue
        metavar = option.metavar or {int: "N", float: "X", str: "NAME"}[option.kind]
        if option.choices:
            metavar = "{" + ",".join(option.choices) + "}"
        group.add_argument(*option.flags, dest=name, type=option.kind, default=None, metavar=metavar, help=text)
    group = groups["run folder"]
    group.add_argument("-o", "--output", metavar="DIR", help="the run folder (default: runs/NETWORK-DATA-TIME)")
    group.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="auto|FILE",
        help="go on from the newest whole checkpoint in DIR (start anew where there is none), or from FILE, or from "
        "a run folder; options not given are those of the run",
    )
    group.add_argument(
        "--config", metavar="FILE", help="options from a TOML file, such as a run's config.toml; flags beat it"
    )
    parser.add_argument(
        "--check-grads",
        action="store_true",
        help="train nothing: compare the gradients of the first images with differences of their cost",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    chosen = vars(parser.parse_args(arguments))
    output, resume, config = chosen.pop("output"), chosen.pop("resume"), chosen.pop("config")
    quiet, verbose, check = chosen.pop("quiet"), chosen.pop("verbose"), chosen.pop("check_grads")
    flags = {name: value for name, value in chosen.items() if value is not None}
    tolerate_encoding()

    def work() -> int:
        from ..output.console import Console, Silent
        from ..training.config import read_toml
        from ..training.train import run

        with in_group() as group:
            options = read_toml(config) if config else {}
            console = Console(quiet, verbose) if group.rank == 0 else Silent()
            return run(flags, options, output, resume, console, check_grads=check, group=group)

    return guarded(parser.prog, verbose, work)


if __name__ == "__main__":
    raise SystemExit(main())
