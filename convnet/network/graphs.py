"""Work that comes again and again: queued piece by piece the first time, captured the second, launched from then on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

from ..devices import switches
from ..devices.protocol import DeviceLost, Graph, KernelFault, Stream

log = logging.getLogger(__name__)


class Graphs:
    """Graphs over ``streams``. The first of each kind of work is not captured: devices then do what they do once.

    ``capturing`` False queues everything piece by piece, for whoever wants to watch.
    """

    def __init__(self, streams: list[Stream]):
        self._streams = streams
        self._found: dict[Hashable, Graph | None] = {}  # None: was queued once
        self._settings: Hashable = None
        self.capturing = switches.on("graph")
        self.launched = 0  # graphs, so far

    def run(self, key: Hashable, settings: Hashable, queue: Callable[[], None]) -> None:
        """Does what ``queue`` queues on the streams, which must be the same for the same ``key`` and ``settings``. With
        other settings than before all graphs are forgotten.
        """
        if settings != self._settings:
            self._found.clear()
            self._settings = settings
        if key in self._found and self.capturing:
            if self._found[key] is None:
                self._found[key] = self._capture(queue)
            if (graph := self._found[key]) is not None:
                graph.launch()
                self.launched += 1
                return
        self._found.setdefault(key, None)
        queue()

    def _capture(self, queue: Callable[[], None]) -> Graph | None:
        first, *others = self._streams
        try:
            with first.capture(others) as graph:
                queue()
        except (DeviceLost, KernelFault):
            raise
        except RuntimeError as error:  # other DeviceErrors are among these; a step queued by pieces computes the same
            log.warning("work cannot be captured, and is queued piece by piece: %s", error)
            self.capturing = False
            return None
        return graph
