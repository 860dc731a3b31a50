"""The views of a stored image that are evaluated: its centre, nine, or the paper's ten."""

from __future__ import annotations

import numpy as np

from .dataset import I32

VIEWS = (1, 9, 10)


def view_windows(size: int, crop: int, views: int) -> I32:
    """The windows of every view, int32 (views, 3): top, left, flip; images are ``size`` and windows ``crop`` a side.

    One view is the centre. Ten are the four corners and the centre, then the same five mirrored (Krizhevsky, Sutskever
    and Hinton 2012, section 4.1), in the order of the 2012 program: top left, top right, centre, bottom left, bottom
    right. Nine, not mirrored, are that program's for CIFAR-10: three places along each axis, rows first. Raises
    ``ValueError`` for another number.
    """
    border = size - crop
    centre = (border // 2, border // 2)
    if views == 1:
        places = [centre]
    elif views == 10:
        places = [(0, 0), (0, border), centre, (border, 0), (border, border)]
    elif views == 9:
        places = [(top, left) for top in (0, border // 2, border) for left in (0, border // 2, border)]
    else:
        raise ValueError(f"views must be one of {VIEWS}, got {views}")
    flips = (0, 1) if views == 10 else (0,)
    return np.array([(top, left, flip) for flip in flips for top, left in places], np.int32)
