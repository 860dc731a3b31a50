"""Definition and parameter files written for the tests: small networks with every feature of the published ones."""

from __future__ import annotations

from pathlib import Path

# Two columns for pictures of 32 x 32, in the dialect of 2012, with a path of low resolution beside them.
COLUMNS = """\
[data]
type=data
dataIdx=0

[labels]
type=data
dataIdx=1

[blur0]
type=blur
inputs=data
filterSize=5
stdev=2
channels=3
gpu=0

[nails0]
type=nailbed
inputs=blur0
stride=2
channels=3

[conv1a]
type=conv
inputs=data
channels=3
filters=16
padding=2
stride=2
filterSize=5
initW=0.01
partialSum=1
sharedBiases=1
gpu=0

[conv1b]
type=conv
inputs=data
channels=3
filters=16
padding=2
stride=2
filterSize=5
initW=0.01
partialSum=1
gpu=1

[rnorm1a]
type=cmrnorm
inputs=conv1a
channels=16
size=5

[rnorm1b]
type=cmrnorm
inputs=conv1b
channels=16
size=5

[pool1a]
type=pool
pool=max
inputs=rnorm1a
sizeX=3
stride=2
channels=16
neuron=relu

[pool1b]
type=pool
pool=max
inputs=rnorm1b
sizeX=3
stride=2
channels=16
neuron=relu

[conv2a]
type=conv
inputs=nails0,pool1a
filters=32,16
padding=0,1
stride=2,1
filterSize=3,3
channels=3,16
groups=1,2
randSparse=0,1
filterChannels=3,8
initW=0.01,0.02
initB=1
partialSum=4
neuron=relu
gpu=0
initWFunc=initw.makew(conv2a)
initBFunc=initw.makeb(conv2a)
initCFunc=initw.makec(conv2a)

[conv2b]
type=conv
inputs=pool1b
filters=32
padding=1
filterSize=3
channels=16
initW=0.01
partialSum=4
neuron=ident

[cnorm2a]
type=rnorm
inputs=conv2a
channels=32
size=3

[cnorm2b]
type=cnorm
inputs=conv2b
channels=32
size=3

[local3]
type=local
inputs=cnorm2a,cnorm2b
channels=32,32
filters=8,16
groups=2,1
filterSize=3,5
padding=0,1
stride=1,1
initW=0.04,0.04
neuron=tanh[1.7,0.5]

[both]
type=concat
inputs=cnorm2b,cnorm2a

[pool4]
type=pool
pool=avg
inputs=both
sizeX=4
stride=4
start=-2
channels=64

[fc5]
type=fc
inputs=local3,pool4
outputs=20
initW=0.01,0.02
neuron=relu

[hs5]
type=hs
keep=0.25
inputs=fc5

[fc6]
type=fc
inputs=hs5
outputs=10
initW=0.1
initB=-5

[probs]
type=softmax
inputs=fc6

[logprob]
type=cost.logreg
inputs=labels,probs
"""

_WEIGHTS = """\
[{name}]
epsW={eps}
epsB=0.02
momW={mom}
momB=0.9
wc={wc}
schedW=dexp[tgtFactor=250,noiseStdev=0,numSteps=4]

"""
_TWO = ("conv2a", "local3", "fc5")
COLUMNS_PARAMS = (
    "".join(
        _WEIGHTS.format(
            name=name,
            eps="0.01,0.02" if name in _TWO else "0.01",
            mom="0.9,0.8" if name in _TWO else "0.9",
            wc="0.0005,3" if name in _TWO else "0.0005",
        )
        for name in ("conv1a", "conv1b", "conv2a", "conv2b", "local3", "fc5", "fc6")
    )
    + """\
[rnorm1a]
scale=0.0001
pow=0.75
minDiv=2

[rnorm1b]
scale=0.0001
pow=0.75

[cnorm2a]
scale=0.001
pow=0.5
minDiv=2

[cnorm2b]
scale=0.001
pow=0.75

[hs5]
enable=false

[logprob]
coeff=.5
topk=5
"""
)

# A chain for pictures of 24 x 24 in the dialect of cuda-convnet2: lists of one entry, schedules inside the rates.
CHAIN = """\
[data]
type=data
dataIdx=0

[labels]
type=data
dataIdx=1

[conv1]
type=conv
inputs=data
channels=3
filters=16
padding=2
filterSize=5
initW=0.01
sumWidth=4
gpu=0,1

[pool1]
type=pool
pool=avg
sum=1
inputs=conv1
sizeX=3
stride=2
channels=16
neuron=relu

[fca]
type=fc
inputs=pool1
outputs=8
initW=0.01

[fcb]
type=fc
inputs=pool1
outputs=8
initW=0.01

[joined]
type=pass
inputs=fca,fcb

[kept]
type=dropout
inputs=joined

[halved]
type=dropout2
inputs=kept

[added]
type=eltsum
inputs=halved,joined

[fc]
type=fc
inputs=added,halved
outputs=4
initW=0.01

[probs]
type=softmax
inputs=fc

[logprob]
type=cost.logreg
inputs=labels,probs

[small]
type=cost.sum2
inputs=fca
"""

CHAIN_PARAMS = "".join(
    f"[{name}]\nepsW=dexp[base=0.02;tgtFactor=250;numSteps=4]\nepsB={eps}\nmomW=0.9\nmomB=0.9\nwc=0.001\n\n"
    for name, eps in (("conv1", "exp[base=.04;tgtFactor=10]"), ("fca", "0.04"), ("fcb", "const[base=.04]"), ("fc", "1"))
) + (
    "[kept]\nkeep=.8\n\n[halved]\nenable=false\n\n[added]\ncoeffs=1,-1\n\n"
    "[logprob]\ncoeff=1\n\n[small]\ncoeff=0.001 ; a weak one\n"
)

# A network for pictures of 32 x 32 as files older than June 2012 had it: norms with their numbers, no GPUs.
OLD = """\
# older than June 2012
[data]
type=data
dataIdx=0

[labels]
type=data
dataIdx=1

[conv1]
type=conv
inputs=data
channels=3
filters=16
padding=1
stride=1
filterSize=3
initW=0.0001
partialSum=4
sharedBiases=false
neuron=linear[3,2.2]

[norm1]
type=rnorm
inputs=conv1
channels=16
sizeX=3
scale=0.00005
pow=.75

[fc10]
type=fc
inputs=norm1
outputs=10
initW=0.01

[probs]
type=softmax
inputs=fc10

[logprob]
type=cost.logreg
inputs=labels,probs
"""

OLD_PARAMS = """\
[conv1]
epsW=0.001
epsB=0.002
momW=0.9
momB=0.9
wc=0.004
schedW=linear[1,1]

[fc10]
epsW=0.001
epsB=0.002
momW=0.9
momB=0.9
wc=3

[logprob]
coeff=1
"""

PAIRS = {"columns": (COLUMNS, COLUMNS_PARAMS), "chain": (CHAIN, CHAIN_PARAMS), "old": (OLD, OLD_PARAMS)}


def write(folder: Path, layers: str, params: str | None = None) -> tuple[Path, Path | None]:
    """The two files ``layers.cfg`` and ``params.cfg``."""
    definition, parameters = folder / "layers.cfg", folder / "params.cfg"
    definition.write_text(layers)
    if params is None:
        return definition, None
    parameters.write_text(params)
    return definition, parameters


# Two columns for pictures of 8 x 8 that read each other in other orders, with drawn channels and local layers.
TWISTED = """\
[data]
type=data
dataIdx=0

[labels]
type=data
dataIdx=1

[conv1a]
type=conv
inputs=data
channels=3
filters=8
padding=1
filterSize=3
initW=0.1
partialSum=1
neuron=relu
gpu=0

[conv1b]
type=conv
inputs=data
channels=3
filters=8
padding=1
filterSize=3
initW=0.1
partialSum=1
neuron=relu
gpu=1

[rnorm1a]
type=cmrnorm
inputs=conv1a
channels=8
size=3

[rnorm1b]
type=cmrnorm
inputs=conv1b
channels=8
size=3

[conv2a]
type=conv
inputs=rnorm1a,rnorm1b
channels=8,8
filters=8,8
padding=1,1
stride=2,2
filterSize=3,3
initW=0.1,0.1
partialSum=1
neuron=relu

[conv2b]
type=conv
inputs=rnorm1b,rnorm1a
channels=8,8
filters=8,8
padding=1,1
stride=2,2
filterSize=3,3
initW=0.1,0.1
partialSum=1
neuron=relu

[conv3a]
type=conv
inputs=conv2a
channels=8
filters=4
groups=2
randSparse=1
filterChannels=8
padding=1
filterSize=3
initW=0.1
partialSum=1
sharedBiases=0
neuron=relu

[conv3b]
type=conv
inputs=conv2b
channels=8
filters=4
groups=2
randSparse=1
filterChannels=8
padding=1
filterSize=3
initW=0.1
partialSum=1
sharedBiases=0
neuron=relu

[local4a]
type=local
inputs=conv3a
channels=8
filters=4
groups=2
padding=1
filterSize=3
initW=0.1

[local4b]
type=local
inputs=conv3b
channels=8
filters=4
groups=2
padding=1
filterSize=3
initW=0.1

[both]
type=concat
inputs=local4b,local4a

[fc5a]
type=fc
inputs=both
outputs=6
initW=0.1
neuron=relu

[fc5b]
type=fc
inputs=both
outputs=6
initW=0.1
neuron=relu

[fc6]
type=fc
inputs=fc5b,fc5a
outputs=4
initW=0.1,0.1

[probs]
type=softmax
inputs=fc6

[logprob]
type=cost.logreg
inputs=labels,probs
"""
