"""``convnet-export``"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..cli import DONE, UNEXPECTED, Parser, guarded, tolerate_encoding, weights_options


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        "convnet-export",
        "A trained network for other programs: ONNX, or its weights as plain arrays, with a model card beside them.\n"
        "RUN is a run folder (its best checkpoint), a checkpoint file, or a file of weights of torchvision's or\n"
        "Caffe's AlexNet (.pth, .safetensors, .npz, .onnx); or a checkpoint of the 2012 program or cuda-convnet, or a\n"
        "folder of these, whose weights become a .safetensors file by the names of its layers, or of ours with\n"
        "--layer-def.",
        "convnet-export runs/first -o first.onnx --check",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, checkpoint, or file of weights")
    weights_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="a name in .onnx, .safetensors or .npz. A model card is written to README.md beside it, or to FILE.md "
        "where there is a README.md of somebody else's",
    )
    group = parser.add_argument_group("checkpoints of the 2012 program and cuda-convnet")
    group.add_argument(
        "--layer-def",
        metavar="FILE",
        help="their definition file: the weights are named and laid out as in the network that it becomes here",
    )
    group.add_argument(
        "--crop", type=int, metavar="N", help="for images of N x N pixels (default: 224 or 32, as the layers suggest)"
    )
    group = parser.add_argument_group("ONNX")
    group.add_argument(
        "--input",
        choices=("uint8", "float32"),
        help="pictures, uint8 (n, crop, crop, 3), with mean and scale inside the file; or images that are prepared, "
        "float32 (n, 3, crop, crop) (default: uint8)",
    )
    group.add_argument(
        "--check",
        action="store_true",
        help="run it in onnxruntime beside us, on random pictures and some of the run's, and write nothing where the "
        "results are more than 1e-5 of the largest apart",
    )
    group = parser.add_argument_group("arrays (.safetensors, .npz)")
    group.add_argument(
        "--names",
        choices=("convnet", "torch"),
        help="ours, such as conv1.weight, or those of a torch.nn.Sequential of the same layers, and torchvision's for "
        "alexnet-torchvision; the card has the code (default: convnet)",
    )
    group = parser.add_argument_group("model card")
    group.add_argument(
        "--data-licence", metavar="TEXT", help="under which the training pictures are (default: not said)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
    chosen = vars(parser.parse_args(arguments))
    run, output, quiet, verbose = (chosen.pop(name) for name in ("run", "output", "quiet", "verbose"))
    tolerate_encoding()

    def work() -> int:
        from ..analysis.export import Disagreement, Options, export
        from ..output.console import Console

        console = Console(quiet, verbose)
        try:
            export(run, output, Options(**chosen), console)
        except Disagreement as error:
            console.clear()
            print(f"{parser.prog}: error: {error}", file=sys.stderr)
            return UNEXPECTED
        finally:
            console.clear()
        return DONE

    return guarded(parser.prog, verbose, work)


if __name__ == "__main__":
    raise SystemExit(main())
