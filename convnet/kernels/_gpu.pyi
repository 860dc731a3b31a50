"""The kernels on CUDA devices; they run in the context that is current. Failures of CUDA are ``RuntimeError``."""

from ._kernels import *

class Graph:
    """What was queued between ``begin_capture`` and ``end_capture``, ready to run as often as wanted."""

    def launch(self, stream: int) -> None:
        """Queues all of it on ``stream``."""

def begin_capture(stream: int) -> None:
    """Work that is queued on ``stream``, and on streams that wait for its events, is captured instead of done."""

def end_capture(stream: int) -> Graph:
    """Ends what ``begin_capture`` began on the same stream, on all streams; raises what went wrong in between."""

def check_only(on: bool) -> None:
    """While on, functions check their arguments and prepare the launch, tensor maps included, and start no kernel."""

def set_programmatic_launches(on: bool) -> None:
    """Whether kernels may start before those in front of them have ended (from sm_90 on; at first they may)."""

def signatures() -> dict[str, list[tuple[str, str, bool, bool]]]:
    """What the functions take: name, kind (of an array its dtype, "activations" where the precision decides that),
    whether it is an array that is written, whether None may be passed."""
