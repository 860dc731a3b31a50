"""``python -m convnet``: which commands there are."""

from .version import __version__

COMMANDS = {
    "train": "trains; without data on drawn shapes, so that it works at once anywhere",
    "eval": "top-1 and top-5 error of runs and of their mean, with one or ten views",
    "predict": "the most probable classes of images, or their features",
    "show": "figures: curves, filters, predictions, neighbours, confusion",
    "explore": "a page in the browser: curves while runs train, and what both towers see in a picture",
    "export": "a network for other programs: ONNX, safetensors, .npz",
    "prepare": "packs a folder or an archive of images for training",
    "info": "devices, driver, compiled kernels, versions, a self-test",
}

if __name__ == "__main__":
    print(f"convnet {__version__}; its commands (each with --help, and also as python -m convnet.cli.NAME):")
    for name, what in COMMANDS.items():
        print(f"  convnet-{name:8} {what}")
