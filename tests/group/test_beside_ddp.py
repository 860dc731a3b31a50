"""Two processes of ours beside two of PyTorch's DistributedDataParallel: from the same weights, the same losses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from mpi import mpirun, needs_mpi
from runs import ELSEWHERE

pytest.importorskip("torch", reason="PyTorch is not installed")

STEPS = 50
BOTH = f"""
import json, os, sys
sys.path.insert(0, sys.argv[2])
from benchmarks import pictures, scale
from benchmarks.our_network import mean_image
import numpy as np
from convnet import Network
from convnet.group.launch import joined
from convnet.network.networks import network
group, spec, n = joined(), network("alexnet-tiny", num_classes=10, crop=40, dropout=0.0), 32
theirs, scale.LR = scale.Theirs(group), 0.01
album = pictures.Album(spec.image_size)
batches = pictures.batches(n, spec.classes, spec.image_size, spec.crop, 0)
losses = []
with Network(spec, "cpu", n, group=group, parallel=sys.argv[1]) as net:
    net.set_input(mean_image(spec.crop))
    part, weights = net.share(n), net.weights()
    labels = [(b.indices % 10).astype(np.int32) for b in batches]  # what can be learnt
    cut = [(b.images(album, spec.crop)[part], k[part]) for b, k in zip(batches, labels)]
    step = theirs.step(spec, weights, cut)
    for k in range({STEPS}):
        batch = batches[k % len(batches)]
        images, known = album.images[batch.indices], labels[k % len(batches)]
        own = (values[part] for values in (images, known, batch.windows, batch.noise))
        ours = net.train_step(*own, scale.LR, scale.MOMENTUM, scale.WEIGHT_DECAY, None, n).get()[0].mean()
        both = group.everyone(float(step(k % len(batches)).detach()), "a test")
        losses.append((float(ours), sum(both) / len(both)))
if group.rank == 0:
    os.write(1, json.dumps(losses).encode())
"""


@needs_mpi
def test_the_curves_of_fifty_steps_overlap(within):
    """Without dropout, which draws other numbers. They fall, and stay together to some roundings."""
    from benchmarks.report import ROOT

    done = mpirun(2, "-c", ELSEWHERE + BOTH, "data", ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    ours, theirs = np.array(json.loads(done.stdout)).T
    assert len(ours) == STEPS
    assert ours[-8:].mean() < ours[:8].mean() - 0.05
    within("losses beside DDP", float((abs(ours - theirs) / theirs).max()) / 5e-3)
