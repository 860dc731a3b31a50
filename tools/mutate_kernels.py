"""Makes small mistakes in the kernel sources, one at a time, and says which test notices.

    python tools/mutate_kernels.py                         2 mutants of every file that has a row below
    python tools/mutate_kernels.py --file relu --each 0    every mutant of the files whose name contains this
    python tools/mutate_kernels.py --again mutants.json    only what an earlier run has not tried or has seen survive
    python tools/mutate_kernels.py --list                  what would be done, without doing it

A mutant is one change of one place: a guard that is off by one, an index, a sign, a stride, a term, a rounding, a
value that memory starts with, a barrier. A copy of the project is built once as the emulator's module; each mutant
rebuilds what depends on its file there and runs the tests of that file's op up to the first that fails. Which mutants
of a file are drawn depends on --seed alone; a larger --each adds to them. Those of equivalent_mutants.toml change
nothing that a result shows, each with its reason, and are not run. Needs CMake, ninja and a C++ compiler; a mutant
takes some seconds, one that survives up to some minutes. Exits with 1 when one survives.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import remove_barriers

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "src" / "kernels"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
COPIED = ("CMakeLists.txt", "pyproject.toml", "cmake", "src", "convnet", "tests", "tools")
MEMORY = 16 << 30  # of address space: a mutant may ask for any amount
OBJECT = "src/kernels/emu/CMakeFiles/_emu.dir/__/{}.o"  # of a source, in the build folder
SPARE = 20  # seconds that a mutant may take for the first tests beyond three times what they take undisturbed
MOST = 900  # seconds for the others
TOO_SLOW = "cpu or cuda or full"  # tests whose names contain this are left out: other devices, layers of full size


class Stage(NamedTuple):
    """Tests, and the source that is compiled for them; where that is empty, all that includes the mutated file."""

    paths: tuple[str, ...]
    expression: str = ""  # for -k
    source: str = ""


def tests(*names: str) -> Stage:
    """The files of these names, wherever in tests/ they lie."""
    found = (next(ROOT.glob(f"tests/*/test_{name}.py")) for name in names)
    return Stage(tuple(file.relative_to(ROOT).as_posix() for file in found))


def every_kernel(ops: str, source: str = "") -> Stage:
    """Each row of the tables of some ops, made to run on three small problems."""
    return Stage(("tests/ops/test_ops_variants.py::test_every_kernel",), ops, source)


# The tests that exercise a file, stage by stage, the quickest first. Compiling every source that includes a header of
# products takes longer than most tests: such a header is judged by the first of them alone as far as that goes. It
# must be the first to be linked, as its instances of templates then stand for those of all.
CHECKS = ("limits", "bindings", "functional")
CONVOLUTION = tests("kernel_choice", *CHECKS, "ops_conv", "ops_fused", "variants")._replace(
    expression="not (tiny or shrunk)"
)
LINEAR = tests("kernel_choice", *CHECKS, "ops_linear", "ops_update", "ops_fused", "variants")
LOCAL = tests("kernel_choice", *CHECKS, "ops_local", "variants")
BACKWARD_DATA = every_kernel("conv_backward_data", "conv_backward_data.cu")
BACKWARD_FILTER = every_kernel("conv_backward_filter", "conv_backward_filter.cu")
CONVOLUTIONS = (BACKWARD_DATA, CONVOLUTION)
OF_GEMM = tests("ops_linear", "ops_update", "ops_fused")._replace(expression="linear or update", source="gemm.cu")
PRODUCTS = (BACKWARD_DATA, OF_GEMM, tests("kernel_choice", *CHECKS, "ops_fused", "ops_variants", "variants"))
FILTER_PRODUCTS = (BACKWARD_FILTER, *PRODUCTS[1:])
OF_CAST = tests("ops_weights")._replace(source="cast.cu")
OF_DROPOUT = tests("ops_dropout")._replace(source="dropout.cu")
OF_LRN = tests("ops_lrn")._replace(source="lrn.cu")
MAPS = tests(*CHECKS, "ops_weights", "ops_elementwise", "ops_dropout", "ops_pool", "ops_lrn", "ops_lrn_pool")
UPDATES = tests("ops_weights", "ops_update", "ops_elementwise", *CHECKS)
TESTS: dict[str, tuple[Stage, ...]] = {
    "relu.cu": (tests("ops_elementwise", *CHECKS),),
    "activation.cu": (tests("ops_activation", "ops_elementwise", *CHECKS),),
    "pointwise.cu": (tests("ops_elementwise", "ops_join", *CHECKS),),
    "gather_channels.cu": (tests("ops_gather_channels", *CHECKS),),
    "costs.cu": (tests("ops_costs", *CHECKS),),
    "sgd.cu": (UPDATES,),
    "cast.cu": (tests("ops_weights", *CHECKS),),
    "fold.cu": (tests("ops_weights", "ops_elementwise", *CHECKS),),
    "dropout.cu": (tests("ops_dropout", *CHECKS),),
    "softmax.cu": (tests("ops_softmax", "ops_update", *CHECKS),),
    "maxpool.cu": (tests("ops_pool", *CHECKS),),
    "lrn.cu": (tests("ops_lrn", *CHECKS),),
    "avgpool.cu": (tests("ops_avgpool", *CHECKS),),
    "randpool.cu": (tests("ops_randpool", *CHECKS),),
    "spatial_norm.cu": (tests("ops_spatial_norm", *CHECKS),),
    "blur.cu": (tests("ops_blur", *CHECKS),),
    "nailbed.cu": (tests("ops_blur", *CHECKS),),
    "lrn_pool_forward.cu": (tests("ops_lrn_pool", *CHECKS),),
    "lrn_pool_backward.cu": (tests("ops_lrn_pool", *CHECKS),),
    "ingest.cu": (tests("ops_elementwise", *CHECKS),),
    "ingest_planar.cu": (tests("ops_planar", *CHECKS),),
    "pack.cu": (tests("ops_pack", *CHECKS),),
    "gemm.cu": (every_kernel("linear"), LINEAR),
    "local.cu": (every_kernel("local"), LOCAL),
    "position_bias.cu": (tests("ops_local", *CHECKS),),
    "conv_forward.cu": (every_kernel("conv_forward"), CONVOLUTION),
    "conv_backward_data.cu": (BACKWARD_DATA, CONVOLUTION),
    "conv_backward_filter.cu": (BACKWARD_FILTER, CONVOLUTION),
    "tile/channels.cuh": (OF_LRN, tests("limits", "ops_lrn", "ops_lrn_pool")),
    "tile/dropout.cuh": (OF_DROPOUT, tests("limits", "ops_dropout", "ops_fused")),
    "tile/input_strip.cuh": (tests("ops_planar", "ops_elementwise", *CHECKS),),
    "tile/image_sums.cuh": (LOCAL,),
    "tile/philox.cuh": (OF_DROPOUT, tests("rng", "ops_dropout", "ops_fused")),
    "tile/pool_windows.cuh": (tests("limits", "ops_pool", "ops_avgpool", "ops_randpool", "ops_lrn_pool"),),
    "tile/square_windows.cuh": (tests("limits", "ops_blur", "ops_spatial_norm"),),
    "tile/quads.cuh": (OF_CAST, MAPS),
    "tile/lane_columns.cuh": (tests("ops_costs", "ops_softmax"),),
    "tile/update.cuh": (OF_GEMM, UPDATES),
    "tile/weight_copy.cuh": (OF_CAST, UPDATES),
    "tile/folding.cuh": (UPDATES,),
    "tile/sums.cuh": FILTER_PRODUCTS,
    "tile/linear_operands.cuh": (every_kernel("linear"), LINEAR),
    "tile/wgmma_filter.cuh": FILTER_PRODUCTS,
    "tile/wgmma_filter_tf32.cuh": FILTER_PRODUCTS,
    "tile/wgmma_window.cuh": FILTER_PRODUCTS,
    "tile/conv_problem.cuh": CONVOLUTIONS,
    "tile/wgmma_maps.cuh": PRODUCTS,
    "tile/wgmma_maps_tf32.cuh": CONVOLUTIONS,
    "tile/wgmma_ring.cuh": PRODUCTS,
    "tile/wgmma_tensors.cuh": PRODUCTS,
    "tile/wgmma_tf32.cuh": CONVOLUTIONS,
    "tile/epilogue.cuh": PRODUCTS,
    "tile/gemm_tile.cuh": PRODUCTS,
    "tile/loaders.cuh": PRODUCTS,
    "tile/simt.cuh": PRODUCTS,
    "tile/tensor_core.cuh": PRODUCTS,
    "tile/variants.cuh": PRODUCTS,
}

# The rules: a name, what is looked for in the code, and what takes its place. Binary operators have spaces around
# them (clang-format sees to that), template brackets have none.
NAME = r"\w+(?:(?:\.|::)\w+|\[\w+\])*"
RULES: list[tuple[str, str, str]] = [
    ("guard", r"(?<= )<(?= )", "<="),
    ("guard", r"(?<= )<=(?= )", "<"),
    ("guard", r"(?<= )>(?= )", ">="),
    ("guard", r"(?<= )>=(?= )", ">"),
    ("guard", r"(?<= )==(?= )", "!="),
    ("guard", r"(?<= )&&(?= )", "||"),
    ("guard", r"(?<= )\|\|(?= )", "&&"),
    ("guard dropped", r"(?<=if \()[^;{}\n]+(?=\) (?:return|break|continue);)", "false"),
    ("index", r"\[((?!k[A-Z])\w+)\](?= [-+*/=<>&]|;|,|\))", r"[\1 ^ 1]"),
    ("index", r"(?<=[\w)\]] \+ )([a-z]\w*)(?=[;,)\]])", r"\1 + 1"),
    ("constant", r"(?<=[*/%] )(\d+)(?![\w.])", r"(\1 + 1)"),
    ("constant", r"(?<![\w.])(\d+)(?= [*/%] )", r"(\1 + 1)"),
    ("sign", r"(?<=[\w)\]}] )\+(?= )", "-"),
    ("sign", r"(?<=[\w)\]}] )-(?= )", "+"),
    ("stride", r"(?<=\.)H\b", "W"),
    ("stride", r"(?<=\.)W\b", "H"),
    ("stride", r"(?<=\.)P\b", "Q"),
    ("stride", r"(?<=\.)Q\b", "P"),
    ("stride", r"pad_top\b", "pad_left"),
    ("stride", rf"(?<=[\w)\]]) \* {NAME}(?![\w(<{{])", ""),
    ("group", r" [/*] [\w.]*groups\b", ""),
    ("dropped term", r"(?<= )\+=(?= )", "="),
    ("dropped term", rf"(?<=[\w)\]]) \+ {NAME}(?=[;,)\]])", ""),
    ("start value", r"(?<== )0(\.0f)?(?=;)", r"1\1"),
    ("start value", r"(?<=[?:{,] )0\.0f", "1.0f"),
    ("rounding", r"(?<!int64_t )ceil_div\(([^(),]+), ([^(),]+)\)", r"((\1) / (\2))"),
    ("rounding", r"(?<!int64_t )round_up\(([^(),]+), ([^(),]+)\)", r"(\1)"),
    ("extreme", r"\bfmaxf\b", "fminf"),
    ("extreme", r"\bstd::min\b", "std::max"),
    ("choice", r"\? ([\w.\[\]]+) : ([\w.\[\]]+)(?=[;,)])", r"? \2 : \1"),
    ("not", r"(?<=[( ])!(?=[\w(])", ""),
]

# Code that no rule touches: it changes no result, or is checked where it is compiled; and what messages say.
UNTOUCHED = re.compile(
    r"\bop,\s*\"[^\"\n]*\"(?:[^\";]|\"[^\"\n]*\")*;|static_assert\([^;]*;|^#[^\n]*|__launch_bounds__\([^)]*\)"
    r"|\btemplate <[^\n]*|\boperator\W+|(?<=kernel) < [^;]*;|\"[^\"\n]*\"|//[^\n]*",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Mutant:
    """One change of one place."""

    file: str  # relative to src/kernels
    line: int
    rule: str
    start: int
    end: int
    new: str
    before: str  # the line, without indentation
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.rule}: {self.before}  ->  {self.after}"

    def apply(self, text: str) -> str:
        return text[: self.start] + self.new + text[self.end :]


def blanked(text: str) -> str:
    """The text with spaces in place of what rules leave alone; positions stay."""
    return UNTOUCHED.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


@functools.cache
def mutants(file: str) -> tuple[Mutant, ...]:
    """All mutants of a file of src/kernels, by place."""
    text = (KERNELS / file).read_text()
    code = blanked(text)
    changes: dict[tuple[int, int, str], str] = {}
    for rule, pattern, replacement in RULES:
        for match in re.finditer(pattern, code):
            changes.setdefault((match.start(), match.end(), match.expand(replacement)), rule)
    for match in remove_barriers.CALL.finditer(code):
        changes.setdefault((match.start(), match.end(), ";"), "barrier")
    found, made = [], {text}  # two rules may come to the same
    for (start, end, new), rule in sorted(changes.items()):
        changed = text[:start] + new + text[end:]
        if changed in made:
            continue
        made.add(changed)
        first, last = text.rfind("\n", 0, start) + 1, text.find("\n", end)
        before, after = text[first:last], text[first:start] + new + text[end:last]
        line = text.count("\n", 0, start) + 1
        found.append(Mutant(file, line, rule, start, end, new, " ".join(before.split()), " ".join(after.split())))
    return tuple(found)


def equivalents() -> dict[tuple[str, str, str], str]:
    """The reasons of mutants that change no result, by file, line before and line after."""
    with EQUIVALENT.open("rb") as file:
        rows = tomllib.load(file).get("mutant", [])
    return {(row["file"], row["before"], row["after"]): row["reason"] for row in rows}


def drawn(file: str, count: int, seed: int) -> list[Mutant]:
    """``count`` mutants of a file (0: all). Each has a rank of its own, so that changes elsewhere in the file or a
    larger count leave most of those that were drawn."""
    nth: Counter[tuple[str, str]] = Counter()
    ranked = []
    for mutant in mutants(file):
        key = mutant.before, mutant.after
        nth[key] += 1
        ranked.append((hashlib.sha256(repr((seed, file, key, nth[key])).encode()).digest(), mutant))
    ranked.sort(key=lambda pair: pair[0])
    return [mutant for _, mutant in ranked][: count or None]


def in_turns(by_file: list[list[Mutant]], some: int = 5) -> list[Mutant]:
    """Some of every file, then more: a run that is cut short has tried all files."""
    longest = max(map(len, by_file))
    return [mutant for i in range(0, longest, some) for of_file in by_file for mutant in of_file[i : i + some]]


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Copy:
    """A copy of the project with the emulator's module built from it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.limits: dict[Stage, float] = {}
        self.judged = ""
        for name in COPIED:
            source = ROOT / name
            for path in [source] if source.is_file() else source.rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so":
                    write_changed(folder / path.relative_to(ROOT), path.read_bytes())
        if not (folder / "build" / "build.ninja").exists():
            options = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1", "-DCONVNET_CUDA=OFF", "-DCONVNET_INPLACE=ON"]
            python = f"-DPython_EXECUTABLE={sys.executable}"
            subprocess.run(["cmake", "-S", folder, "-B", folder / "build", "-G", "Ninja", python, *options], check=True)
        failed = self.build(target="all")  # tests look at other devices, too
        if failed:
            raise RuntimeError(f"the kernels as they are do not build:\n{failed}")

    def build(self, source: str = "", target: str = "_emu") -> str:
        """What the compiler complains about; empty when it built. With a source only that is compiled again."""
        ninja = ["ninja", "-C", self.folder / "build"]
        done = subprocess.run([*ninja, OBJECT.format(source) if source else target], capture_output=True, text=True)
        if done.returncode:
            return done.stdout[-2000:]
        if source:
            listed = subprocess.run([*ninja, "-t", "commands", "_emu"], capture_output=True, text=True, check=True)
            words = shlex.split(listed.stdout.splitlines()[-1])  # : && c++ ... && :
            begin = words.index("&&") + 1
            subprocess.run(words[begin : words.index("&&", begin)], cwd=self.folder / "build", check=True)
        return ""

    def failure(self, stage: Stage, seconds: float = 1800) -> str | None:
        """The first test that fails, or how the tests ended; None when all pass."""
        expression = f"not ({TOO_SLOW})" + (f" and ({stage.expression})" if stage.expression else "")
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", "-q", "--tb=line", "-k", expression]
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(
            [*command, *stage.paths], cwd=self.folder, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=limited,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return "the tests hang"
        if process.returncode == 0:
            return None
        named = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", output, re.MULTILINE)
        if process.returncode < 0:
            return f"the tests end by {signal.Signals(-process.returncode).name}"
        if process.returncode != 1 or not named:
            raise RuntimeError(f"the tests do not run: {' '.join(stage.paths)}\n{output[-3000:]}")
        return named.group(1)

    def confirm(self, killers: set[str]) -> None:
        """Raises where tests that have failed for a mutant fail without one, too."""
        self.build()
        failure = self.failure(Stage(tuple(sorted(killers))), MOST) if killers else None
        if failure:
            raise RuntimeError(f"the tests fail undisturbed: {failure}")

    def seconds(self, stage: Stage) -> float:
        """How long a mutant may take for its first tests, which pass undisturbed."""
        if stage not in self.limits:
            begin = time.monotonic()
            if failure := self.failure(stage):
                raise RuntimeError(f"the tests fail undisturbed: {failure}")
            self.limits[stage] = SPARE + 3 * (time.monotonic() - begin)
        return self.limits[stage]

    def judge(self, mutant: Mutant, quick: bool = False) -> tuple[str, str]:
        """(outcome, by what) of a mutant. What other files need is built when one of them is judged."""
        stages = TESTS[mutant.file]
        stages = stages[:-1] if quick and len(stages) > 1 else stages
        if mutant.file != self.judged:
            self.build()
        self.judged = mutant.file
        limits = [self.seconds(stages[0]), *[MOST] * (len(stages) - 1)]
        path = self.folder / "src" / "kernels" / mutant.file
        objects = [self.folder / "build" / OBJECT.format(stage.source) for stage in stages if stage.source]
        kept = [(file, file.read_bytes(), file.stat().st_mtime_ns) for file in [path, *objects]]
        everything = False  # whether more than these has been built from the mutant
        try:
            path.write_text(mutant.apply(path.read_text()))
            for stage, seconds in zip(stages, limits, strict=True):
                everything = not stage.source
                if self.build(stage.source):
                    return "does not compile", ""
                if failure := self.failure(stage, seconds):
                    return "killed", failure
            return "survived", ""
        finally:
            for file, content, time_ns in kept:
                file.write_bytes(content)
                if not everything:  # then nothing has to be built again
                    os.utime(file, ns=(time_ns, time_ns))
            for module in (self.folder / "convnet").rglob("_emu*.so"):
                module.unlink()  # made of the mutant, and newer than what it is made of
            if everything and objects:
                self.build()


def write_changed(target: Path, content: bytes) -> None:
    """Leaves a file that has this content as it is, so that nothing is built again for it."""
    if not target.exists() or target.read_bytes() != content:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def key(row: dict[str, object]) -> tuple[object, ...]:
    return row["file"], row["line"], row["before"], row["after"]


def table(rows: list[dict[str, object]]) -> str:
    """Counts by file and outcome, and the score."""
    outcomes = ("killed", "survived", "equivalent", "does not compile")
    lines = ["| file | mutants | tried | " + " | ".join(outcomes) + " |", "|---|" + "---|" * (2 + len(outcomes))]
    by_file = Counter((str(row["file"]), str(row["outcome"])) for row in rows)
    for file in TESTS:
        counts = [by_file[file, outcome] for outcome in outcomes]
        if any(counts):
            lines.append(f"| `{file}` | {len(mutants(file))} | {sum(counts)} | " + " | ".join(map(str, counts)) + " |")
    killed, survived, *_ = (sum(row["outcome"] == outcome for row in rows) for outcome in outcomes)
    judged = killed + survived
    score = f"{killed / judged:.1%}" if judged else "none"
    return "\n".join([*lines, f"score: {score} ({killed} of {judged} that compile and are not equivalent)"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", action="append", default=[], metavar="PART", help="of a file's name; may be repeated")
    parser.add_argument("--each", type=int, default=2, help="mutants of every file, 0: all (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="which mutants are drawn (default: 0)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no new mutant is begun after this time")
    parser.add_argument(
        "--quick", action="store_true", help="leave out the last tests of a file: try survivors --again"
    )
    parser.add_argument("--work", type=Path, help="folder of the copy and its build, kept for the next time")
    parser.add_argument("--again", type=Path, metavar="JSON", help="of an earlier run: what it has killed is kept")
    parser.add_argument("-o", "--output", type=Path, default=Path("mutants.json"), help="(default: mutants.json)")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    options = parser.parse_args()
    files = [file for file in TESTS if not options.file or any(part in file for part in options.file)]
    if not files or options.each < 0:
        parser.error(f"--file takes a part of one of {', '.join(TESTS)}; --each 0 or more")
    chosen = in_turns([drawn(file, options.each, options.seed) for file in files])
    if options.list:
        print(*chosen, sep="\n")
        return 0
    earlier = json.loads(options.again.read_text())["mutants"] if options.again else []
    settled = {key(row) for row in earlier if row["outcome"] in ("killed", "does not compile")}
    results = {key(row): row for row in earlier}
    known = equivalents()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        copy = Copy((options.work or Path(temporary)).resolve())
        for mutant in chosen:
            row: dict[str, object] = asdict(mutant)
            if key(row) in settled:
                continue
            if time.monotonic() - begin > 60 * options.minutes:
                break
            reason = known.get((mutant.file, mutant.before, mutant.after))
            outcome, by = ("equivalent", reason) if reason else copy.judge(mutant, options.quick)
            print(f"{outcome:16}  {mutant}" + (f"\n{'':18}{by}" if by else ""), flush=True)
            results[key(row)] = {**row, "outcome": outcome, "by": by}
            options.output.write_text(json.dumps({"mutants": [*results.values()]}, indent=1) + "\n")
        copy.confirm(
            {str(row["by"]) for row in results.values() if row["outcome"] == "killed" and "::" in str(row["by"])}
        )
    print(table([*results.values()]))
    return 1 if any(row["outcome"] == "survived" for row in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
