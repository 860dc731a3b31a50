"""The model card beside an exported network: what it is, what it learnt from, how well, and how to use the file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..interop.onnx_out import Input
from ..interop.torch_names import torch_code
from ..network.spec import Placed, parameter_count, parameter_shapes, placed_layers
from ..network.words import described
from ..output.console import percent
from ..output.files import printable, read_regular
from ..training.metrics import MetricsFile
from ..training.trained import Trained
from ..version import __version__

MARK, END = "<!-- written by convnet-export, for ", " -->"
CLASSES = 50  # that are named in the card; all of them are in the file


@dataclass(frozen=True)
class Export:
    """What was written: the file, of which run, what pictures go through, and in which form."""

    path: Path
    trained: Trained
    sees: Input
    input: str
    names: str


def card_path(file: Path) -> Path | None:
    """README.md in the file's folder; where that is another's, or the card of another file there, the file's name with
    .md behind it; None where that is another's too."""
    for card in (file.with_name("README.md"), file.with_name(f"{file.name}.md")):
        if not os.path.lexists(card):
            return card
        about = _about(card)
        if about == printable(file.name) or (about and not os.path.lexists(file.parent / Path(about).name)):
            return card
    return None


def _about(card: Path) -> str:
    """The name of the file that a card of ours is for; nothing where it is none."""
    try:
        first = read_regular(card)[:4096].decode("utf-8", "replace").partition("\n")[0]
    except OSError:
        return ""
    return first[len(MARK) : -len(END)] if first.startswith(MARK) and first.endswith(END) else ""


def card_text(export: Export, licence: str | None) -> str:
    """Markdown."""
    trained, spec = export.trained, export.trained.spec
    classes = trained.classes
    known = trained.data["name"] if trained.data else f"not known; the weights are those in {trained.path.name}"
    named = ", ".join(f"`{_plain(name)}`" for name in classes[:CLASSES])
    more = f", ... ({len(classes) - CLASSES:,} more)" if len(classes) > CLASSES else ""
    return f"""{MARK}{printable(export.path.name)}{END}

# {_plain(export.path.name)}

`{spec.name}`, {parameter_count(spec):,} parameters; written by convnet {__version__}.

## Data and errors

- Trained on: {_plain(known)}
- Licence of the data: {_plain(licence) if licence else "not said"}
- {len(classes):,} classes: {named}{more}
- {_errors(trained)}

## Use

{_use(export)}

## Layers

| layer | what | output |
|---|---|---|
{"".join(_row(placed, spec.towers) for placed in placed_layers(spec))}"""


def _plain(text: str) -> str:
    """On one line, and no markup."""
    return printable(text).replace("`", "'").replace("|", "/").replace("<", "(").replace(">", ")")


def _errors(trained: Trained) -> str:
    """Of the checkpoint's own evaluation, by the records of its run."""
    if trained.step is None:
        return "Validation: not known"
    step, folder = trained.step, trained.path if trained.path.is_dir() else trained.path.resolve().parent.parent
    records = MetricsFile(folder / "metrics.jsonl").records()
    found = [r for r in records if r.get("event") == "valid" and r.get("step") == step]
    if found and all(isinstance(found[-1].get(key), float) for key in ("top1_error", "top5_error", "loss")):
        top1, top5, loss = (found[-1][key] for key in ("top1_error", "top5_error", "loss"))
        fifth = f", top-5 error {percent(top5)}" if len(trained.classes) > 5 else ""
        return f"Validation, one view, at step {step:,}: top-1 error {percent(top1)}{fifth}, loss {loss:.4f}"
    return f"Validation: no record of an evaluation at step {step:,}"


def _use(export: Export) -> str:
    """A sentence, and some lines of Python."""
    use = _onnx if export.path.suffix == ".onnx" else _torch if export.names == "torch" else _arrays
    text, code = use(export)
    return f"{text}\n\n```python\n{code}\n```"


def _onnx(export: Export) -> tuple[str, str]:
    spec = export.trained.spec
    size, crop = export.trained.image_size, spec.crop
    start, end = (size - crop) // 2, (size - crop) // 2 + crop
    output = f"red green blue; one output, `logits` float32 (n, {spec.classes}); any n."
    session = f"session = onnxruntime.InferenceSession({export.path.name!r})"
    if export.input == "float32":
        text = f"One input, `images` float32 (n, 3, {crop}, {crop}), {output} Images are (pixel - mean) * scale, with "
        return (
            f"{text}pixels from 0 to 255: {_means(export)}",
            f"""import numpy as np, onnxruntime

{session}
images = np.zeros((1, 3, {crop}, {crop}), np.float32)  # yours
logits = session.run(None, {{"images": images}})[0]""",
        )
    return (
        f"One input, `pictures` uint8 (n, {crop}, {crop}, 3), {output}",
        f"""import json, numpy as np, onnxruntime
from PIL import Image, ImageOps

{session}
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
picture = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
picture = ImageOps.fit(picture, ({size}, {size}), Image.Resampling.BILINEAR).crop(({start}, {start}, {end}, {end}))
logits = session.run(None, {{"pictures": np.asarray(picture)[None]}})[0]
print(classes[logits[0].argmax()])""",
    )


def _means(export: Export) -> str:
    """In numbers, where there is one per colour."""
    mean, scale = export.sees
    if (mean == mean[:, :1, :1]).all():
        means, factors = (", ".join(f"{value:.6g}" for value in values) for values in (mean[:, 0, 0], scale))
        return f"mean {means} and scale {factors} for red, green, blue."
    return "the mean is an image, which is inside of a file with `--input uint8`, and `input.mean` in one of arrays."


def _torch(export: Export) -> tuple[str, str]:
    name = export.path.name
    if export.path.suffix == ".npz":
        imports = "import numpy as np"
        texts = '("classes", "network")'
        state = f"{{name: torch.tensor(v) for name, v in np.load({name!r}).items() if name not in {texts}}}"
    else:
        imports, state = "from safetensors.torch import load_file", f"load_file({name!r})"
    crop = export.trained.spec.crop
    return (
        f"Weights for PyTorch. {_pixels(export)}",
        f"""{imports}
{torch_code(export.trained.spec)}

state = {state}
mean, scale = state.pop("input.mean"), state.pop("input.scale")
network.load_state_dict(state)
network.eval()
pictures = torch.zeros((1, 3, {crop}, {crop}))  # yours
logits = network((pictures - mean) * scale)""",
    )


def _arrays(export: Export) -> tuple[str, str]:
    npz = export.path.suffix == ".npz"
    shapes = parameter_shapes(export.trained.spec)
    first = next(iter(shapes))
    shown = ", ".join(f"`{name}` {shape}" for name, shape in list(shapes.items())[:2])
    text = f"Arrays, float32, such as {shown}; convolutions' are (K, C/groups, R, S), linear ones' (out, in)."
    return (
        f"{text} {_pixels(export)}",
        f"""{"import numpy as np" if npz else "from safetensors.numpy import load_file"}

weights = {"np.load" if npz else "load_file"}({export.path.name!r})
print(weights[{first!r}].shape)""",
    )


def _pixels(export: Export) -> str:
    crop = export.trained.spec.crop
    shape = f"(n, 3, {crop}, {crop})"
    return f"Pictures, {shape} of pixels from 0 to 255, red green blue, become (pixel - `input.mean`) * `input.scale`."


def _row(placed: Placed, towers: int) -> str:
    size = f"{placed.K} x {placed.P} x {placed.Q}" if placed.P > 1 else f"{placed.K}"
    return f"| {placed.layer.name} | {described(placed, towers)} | {size} |\n"
