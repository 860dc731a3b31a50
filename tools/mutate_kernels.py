"""Makes small mistakes in the kernel sources, one at a time, and says which test notices.

    python tools/mutate_kernels.py                            40 mutants of all files that have a row below
    python tools/mutate_kernels.py --file relu --count 0      every mutant of the files whose name contains this
    python tools/mutate_kernels.py --list                     what would be done, without doing it

A mutant is one change of one place: a guard that is off by one, an index, a sign, a stride, a term, a rounding, a
value that memory starts with, a barrier. A copy of the project is built once as the emulator's module; each mutant
rebuilds what depends on its file there and runs the tests of that file's op up to the first that fails. Which mutants
are drawn depends on --seed alone. Those of equivalent_mutants.toml change nothing that a result shows, each with its
reason, and are not run. Needs CMake, ninja and a C++ compiler; a mutant takes 10 to 60 s. Exits with 1 when one
survives.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

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
SECONDS = 300  # of tests: a mutant that runs longer hangs

# The tests that exercise a file, quickest first, and an expression for -k.
ELEMENTWISE, LRN = "tests/test_ops_elementwise.py", "tests/test_ops_lrn.py"
PRODUCTS = ("tests/test_ops_linear.py", "tests/test_ops_update.py", "tests/test_ops_variants.py")
CONVOLUTION = ("tests/test_ops_conv.py", "tests/test_ops_variants.py", "tests/test_ops_fused.py")
TESTS: dict[str, tuple[tuple[str, ...], str]] = {
    "relu.cu": ((ELEMENTWISE,), "relu"),
    "tanh.cu": ((ELEMENTWISE,), "tanh"),
    "pointwise.cu": ((ELEMENTWISE, "tests/test_functional.py"), ""),
    "sgd.cu": ((ELEMENTWISE, "tests/test_ops_weights.py", "tests/test_ops_update.py"), ""),
    "cast.cu": (("tests/test_ops_weights.py",), ""),
    "fold.cu": ((ELEMENTWISE, "tests/test_ops_weights.py"), ""),
    "dropout.cu": (("tests/test_ops_dropout.py", ELEMENTWISE), ""),
    "softmax.cu": (("tests/test_ops_softmax.py",), ""),
    "maxpool.cu": (("tests/test_ops_pool.py",), ""),
    "lrn.cu": ((LRN,), ""),
    "lrn_pool.cu": (("tests/test_ops_lrn_pool.py",), ""),
    "ingest.cu": ((ELEMENTWISE,), "ingest"),
    "ingest_planar.cu": (("tests/test_ops_planar.py",), ""),
    "gemm.cu": (PRODUCTS, ""),
    "conv_forward.cu": (CONVOLUTION, ""),
    "conv_backward_data.cu": (CONVOLUTION, ""),
    "conv_backward_filter.cu": (CONVOLUTION, ""),
    "tile/channels.cuh": ((LRN, "tests/test_ops_lrn_pool.py"), ""),
    "tile/dropout.cuh": (("tests/test_ops_dropout.py",), ""),
    "tile/quads.cuh": ((ELEMENTWISE, "tests/test_ops_pool.py"), ""),
    "tile/pool_windows.cuh": (("tests/test_ops_pool.py", "tests/test_ops_lrn_pool.py"), ""),
    "tile/update.cuh": ((ELEMENTWISE, "tests/test_ops_update.py"), ""),
    "tile/weight_copy.cuh": (("tests/test_ops_weights.py",), ""),
}

# The rules: a name, what is looked for in the code, and what takes its place. Binary operators have spaces around
# them (clang-format sees to that), template brackets have none.
NAME = r"[\w.\[\]]+"
RULES: list[tuple[str, str, str]] = [
    ("guard", r"(?<= )<(?= )", "<="),
    ("guard", r"(?<= )<=(?= )", "<"),
    ("guard", r"(?<= )>(?= )", ">="),
    ("guard", r"(?<= )>=(?= )", ">"),
    ("guard", r"(?<= )==(?= )", "!="),
    ("guard", r"(?<= )&&(?= )", "||"),
    ("guard", r"(?<= )\|\|(?= )", "&&"),
    ("guard dropped", r"(?<=if \()[^;{}\n]+(?=\) (?:return|break|continue);)", "false"),
    ("index", r"\[(\w+)\](?= [-+*/=<>&]|;|,|\))", r"[\1 ^ 1]"),
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
    ("rounding", r"ceil_div\(([^(),]+), ([^(),]+)\)", r"((\1) / (\2))"),
    ("rounding", r"round_up\(([^(),]+), ([^(),]+)\)", r"(\1)"),
    ("extreme", r"\bfmaxf\b", "fminf"),
    ("extreme", r"\bstd::min\b", "std::max"),
    ("choice", r"\? ([\w.\[\]]+) : ([\w.\[\]]+)(?=[;,)])", r"? \2 : \1"),
    ("not", r"(?<=[( ])!(?=[\w(])", ""),
]

# Code that no rule touches: it changes no result, or is checked where it is compiled.
UNTOUCHED = re.compile(
    r"static_assert\([^;]*;|^#[^\n]*|__launch_bounds__\([^)]*\)|\btemplate <[^\n]*|\boperator\W+"
    r"|(?<=kernel) < [^;]*;|\"[^\"\n]*\"|//[^\n]*",
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


def drawn(files: list[str], count: int, seed: int) -> list[Mutant]:
    """``count`` mutants (0: all), spread evenly over the files, the same ones for the same seed."""
    shuffled = []
    for file in files:
        every = list(mutants(file))
        random.Random(f"{seed} {file}").shuffle(every)
        shuffled.append(every)
    longest = max(map(len, shuffled))
    by_turns = [every[i] for i in range(longest) for every in shuffled if i < len(every)]
    return by_turns[: count or None]


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Copy:
    """A copy of the project with the emulator's module built from it."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in COPIED:
            source = ROOT / name
            for path in [source] if source.is_file() else source.rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so":
                    write_changed(folder / path.relative_to(ROOT), path.read_bytes())
        if not (folder / "build" / "build.ninja").exists():
            options = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1", "-DCONVNET_CUDA=OFF", "-DCONVNET_INPLACE=ON"]
            python = f"-DPython_EXECUTABLE={sys.executable}"
            subprocess.run(["cmake", "-S", folder, "-B", folder / "build", "-G", "Ninja", python, *options], check=True)
        failed = self.build()
        if failed:
            raise RuntimeError(f"the kernels as they are do not build:\n{failed}")

    def build(self) -> str:
        """What the compiler complains about; empty when it built."""
        done = subprocess.run(["ninja", "-C", self.folder / "build", "_emu"], capture_output=True, text=True)
        return done.stdout[-2000:] if done.returncode else ""

    def failure(self, file: str) -> str | None:
        """The first test of a file's op that fails, or how the tests ended; None when all pass."""
        paths, expression = TESTS[file]
        expression = f"emu and ({expression})" if expression else "emu"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", "-q", "--tb=line", "-k", expression]
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(
            [*command, *paths], cwd=self.folder, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=limited,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return f"the tests run for more than {SECONDS} s"
        if process.returncode == 0:
            return None
        named = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        if process.returncode < 0:
            return f"the tests end by {signal.Signals(-process.returncode).name}"
        if process.returncode != 1 or not named:
            raise RuntimeError(f"the tests of {file} do not run:\n{output[-3000:]}")
        return named.group(1)

    def judge(self, mutant: Mutant) -> tuple[str, str]:
        """(outcome, by what) of a mutant; the copy is as before afterwards."""
        path = self.folder / "src" / "kernels" / mutant.file
        text = path.read_text()
        try:
            path.write_text(mutant.apply(text))
            if self.build():
                return "does not compile", ""
            failure = self.failure(mutant.file)
            return ("killed", failure) if failure else ("survived", "")
        finally:
            path.write_text(text)


def write_changed(target: Path, content: bytes) -> None:
    """Leaves a file that has this content as it is, so that nothing is built again for it."""
    if not target.exists() or target.read_bytes() != content:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", action="append", default=[], metavar="PART", help="of a file's name; may be repeated")
    parser.add_argument("--count", type=int, default=40, help="of mutants, 0: all (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="which mutants are drawn (default: 0)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no new mutant is begun after this time")
    parser.add_argument("--work", type=Path, help="folder of the copy and its build, kept for the next time")
    parser.add_argument("-o", "--output", type=Path, default=Path("mutants.json"), help="(default: mutants.json)")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    options = parser.parse_args()
    files = [file for file in TESTS if not options.file or any(part in file for part in options.file)]
    if not files or options.count < 0:
        parser.error(f"--file takes a part of one of {', '.join(TESTS)}; --count 0 or more")
    chosen = drawn(files, options.count, options.seed)
    if options.list:
        print(*chosen, sep="\n")
        return 0
    known = equivalents()
    begin = time.monotonic()
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        copy = Copy((options.work or Path(temporary)).resolve())
        for file in dict.fromkeys(mutant.file for mutant in chosen):
            if failure := copy.failure(file):
                raise RuntimeError(f"the tests of {file} fail undisturbed: {failure}")
        for mutant in chosen:
            if time.monotonic() - begin > 60 * options.minutes:
                break
            reason = known.get((mutant.file, mutant.before, mutant.after))
            outcome, by = ("equivalent", reason) if reason else copy.judge(mutant)
            print(f"{outcome:16}  {mutant}" + (f"\n{'':18}{by}" if by else ""), flush=True)
            results.append({**asdict(mutant), "outcome": outcome, "by": by})
            counts = Counter(str(row["outcome"]) for row in results)
            summary = {"seed": options.seed, "files": files, "counts": counts, "mutants": results}
            options.output.write_text(json.dumps(summary, indent=1) + "\n")
    judged = counts["killed"] + counts["survived"]
    score = f"{counts['killed'] / judged:.1%}" if judged else "none"
    print(f"{len(results)} mutants: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    print(f"score: {score} ({counts['killed']} of {judged} that compile and are not equivalent)")
    return 1 if counts["survived"] else 0


if __name__ == "__main__":
    sys.exit(main())
