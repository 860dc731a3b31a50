"""``convnet-info``"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence

from ..cli import DEVICE, DONE, Parser, guarded, tolerate_encoding


def main(arguments: Sequence[str] | None = None) -> int:
    from ..kernels.precision import PRECISIONS

    parser = Parser(
        "convnet-info",
        "Shows devices, driver, compiled kernels and versions, and tests every device with a small convolution.\n"
        "With --kernels it shows which kernel every layer and pass takes instead; with --emulate, what one kernel\n"
        "does: grid, bank conflicts, bytes used of global memory, barriers, the ring of stages. With --layer-def,\n"
        "what network a definition file of 2012 is. None of these needs a GPU.",
        "convnet-info --kernels --model alexnet -b 128 --precision bf16",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    group = parser.add_argument_group("kernels")
    group.add_argument("--kernels", action="store_true", help="the kernels that convolutions and linear layers take")
    group.add_argument("--model", default="alexnet", metavar="NAME", help="of this network (default: alexnet)")
    group.add_argument(
        "-b", "--batch-size", type=int, default=128, metavar="N", help="for so many images (default: 128)"
    )
    group.add_argument(
        "--precision", choices=PRECISIONS, metavar="{" + ",".join(PRECISIONS) + "}", help="in this one (default: all)"
    )
    group.add_argument(
        "--shape",
        metavar="SIZES",
        help='for one problem instead of a network: "N=128 C=96 H=27 W=27 K=256 R=5 padding=2 groups=2" '
        '(also stride, S), or without R a linear layer, "N=128 C=9216 K=4096"',
    )
    group = parser.add_argument_group("one kernel under glass")
    group.add_argument(
        "--emulate",
        nargs="+",
        metavar=("OP", "SIZE"),
        help='run this op in the emulator and show what it does, perhaps for other sizes: "conv_forward N=64 C=32"; '
        "an OP that there is not lists them",
    )
    group.add_argument("--without-barrier", type=int, metavar="N", help="and what it says without the call number N")
    group = parser.add_argument_group("definition files of cuda-convnet and the program of 2012")
    group.add_argument(
        "--layer-def",
        metavar="FILE",
        help="the layers that it becomes here: sizes, parameters, multiply-adds, where they lie in the file, and what "
        "is not built or not what its name says",
    )
    group.add_argument("--layer-params", metavar="FILE", help="the parameter file that goes with it")
    group.add_argument(
        "--crop", type=int, metavar="N", help="for images of N x N pixels (default: 224 or 32, as the layers suggest)"
    )
    group.add_argument(
        "--from-start", action="store_true", help="with the rates that the run began with, where it was stepped by hand"
    )
    chosen = parser.parse_args(arguments)
    if chosen.layer_def is None and (chosen.layer_params or chosen.crop is not None or chosen.from_start):
        parser.error("--layer-params, --crop and --from-start need --layer-def FILE")
    if chosen.from_start and chosen.layer_params is None:
        parser.error("--from-start is about rates, which --layer-params FILE has")
    if chosen.crop is not None and chosen.crop < 1:
        parser.error(f"--crop must be at least 1, got {chosen.crop}")
    if chosen.layer_def and (chosen.kernels or chosen.shape or chosen.emulate):
        parser.error("--layer-def shows a file, --kernels, --shape and --emulate kernels: not both at once")
    if chosen.without_barrier is not None and not chosen.emulate:
        parser.error("--without-barrier needs --emulate OP")
    if chosen.emulate and (chosen.kernels or chosen.shape):
        parser.error("--emulate shows one kernel, --kernels and --shape which are chosen: not both at once")
    tolerate_encoding()

    def kernels() -> int:
        from ..analysis import selection

        precisions = (chosen.precision,) if chosen.precision else PRECISIONS
        found = selection.report(chosen.model, chosen.batch_size, precisions, chosen.shape)
        print(json.dumps(found, indent=2) if chosen.json else selection.as_text(found), flush=True)
        return DONE

    def emulate() -> int:
        from ..analysis import glass, glass_text

        op, *sizes = chosen.emulate
        seen = glass.look(op, " ".join(sizes), chosen.precision or "fp32", chosen.without_barrier)
        print(json.dumps(glass.as_json(seen), indent=2) if chosen.json else glass_text.as_text(seen), flush=True)
        return DONE

    def definition() -> int:
        from ..analysis.definition import as_text, report

        found = report(chosen.layer_def, chosen.layer_params, chosen.crop, chosen.from_start)
        width = shutil.get_terminal_size((120, 24)).columns
        print(json.dumps(found, indent=2) if chosen.json else as_text(found, width), flush=True)
        return DONE

    def work() -> int:
        if chosen.layer_def:
            return definition()
        if chosen.emulate:
            return emulate()
        if chosen.kernels or chosen.shape:
            return kernels()
        from ..analysis.info import as_text, passed, report

        found = report()
        print(json.dumps(found, indent=2) if chosen.json else as_text(found), flush=True)
        return DONE if passed(found) else DEVICE

    return guarded(parser.prog, chosen.verbose, work)


if __name__ == "__main__":
    raise SystemExit(main())
