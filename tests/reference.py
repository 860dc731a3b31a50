"""Every operation once more, in float64 NumPy, straight from its formula: slow on purpose, independent of the product.

Images are NCHW, filters KCRS, geometry is given as stride, padding above and left, and output size P, Q; everything
outside the image reads as zero. ``test_reference.py`` checks the gradients here by finite differences.
"""

from __future__ import annotations

import math

import numpy as np

UNIT = 2.0**-24  # half the distance from 1 to the next float32


def ratio(actual, expected, limit) -> float:
    """The largest |actual - expected| / limit; infinite where shapes differ, for NaN, and for a limit of 0 not met."""
    if actual.shape != expected.shape:
        return math.inf
    error = np.abs(actual.astype(np.float64) - expected)
    limit = np.broadcast_to(limit, error.shape)
    exact = error == 0
    worst = np.divide(error, limit, out=np.full(error.shape, np.inf), where=(limit > 0) & ~np.isnan(error))
    return float(np.where(exact, 0.0, worst).max(initial=0.0))


def bf16_step(x):
    """The distance between neighbouring bfloat16 where x lies; at a power of two, the one above it."""
    exponent = np.frexp(np.asarray(x, np.float64))[1]
    return np.ldexp(1.0, np.maximum(exponent, -125) - 8)


def bf16(x):
    """The nearest bfloat16, ties to even, in float64."""
    x = np.asarray(x, np.float64)
    step = bf16_step(x)
    rounded = np.rint(x / step) * step
    return np.where(np.abs(rounded) < 2.0**128, rounded, np.copysign(np.inf, x))


def held(x, precision):
    """float32 values as a device keeps them."""
    return bf16(x).astype(np.float32) if precision == "bf16" else x


def held_limit(limit, expected, precision):
    """Of a result that is right within ``limit`` before a device rounds it to what it keeps."""
    return limit + bf16_step(np.abs(expected) + limit) / 2 if precision == "bf16" else limit


def sum_limit(magnitude, terms: int):
    """Rounding of a float32 sum of ``terms`` products whose absolute values add up to ``magnitude``.

    Rounding errors of random data grow with the square root of their number: sums in plain order stay below 0.8 times
    2^-24 sqrt(terms) magnitude. 4 leaves room by a factor of 5; short sums, whose few errors do not average out, get 8.
    """
    return (8 if terms < 16 else 4) * UNIT * math.sqrt(terms) * magnitude


def rounded(x, precision):
    """float32 operands, normal numbers, as products see them: tf32 has 11 bits of significand, ties away from zero."""
    if precision == "tf32":
        fraction, exponent = np.frexp(x.astype(np.float64))
        cut = np.trunc(np.ldexp(fraction, 11) + np.copysign(0.5, fraction))
        return np.ldexp(cut, exponent - 11).astype(np.float32)
    return held(x, precision)


DEPTH = {"tf32": 8, "bf16": 16}  # terms that a tensor core adds in one instruction


def tensor_limit(expected, squares, instructions: int, device: str):
    """Rounding of a sum that tensor cores make of products without error, ``squares`` the sum of the products' squares.

    An instruction adds its products to the sum and cuts the result to float32, toward zero: an error below 2 UNIT times
    the partial sum. A GPU also aligns the (at most 17) terms to the largest, in two halves on sm_80, and cuts each at
    24 bits: 18 UNIT more at worst. Partial sums may be joined by float32 additions, at most one per instruction, and
    the bias makes one more. Partial sums of data with random signs stay within 4 standard deviations of a random walk:
    no larger than the result and four times the root of the squares, for up to 16 terms without exception (Cauchy).
    """
    per_instruction = 3 if device.startswith("emu") else 21
    return (per_instruction * instructions + 1) * UNIT * (np.abs(expected) + 4 * np.sqrt(squares))


def _framed(x, stride, top, left, P, Q, R, S):
    """x with zeros around it, as far as any window reaches."""
    N, C, H, W = x.shape
    rows, columns = max(top + H, (P - 1) * stride + R), max(left + W, (Q - 1) * stride + S)
    framed = np.zeros((N, C, rows, columns))
    framed[:, :, top : top + H, left : left + W] = x
    return framed


def conv_forward(x, weight, bias=None, *, stride, top, left, P, Q, groups=1, relu=False):
    K, c, R, S = weight.shape
    k = K // groups
    framed = _framed(x, stride, top, left, P, Q, R, S)
    y = np.zeros((x.shape[0], K, P, Q))
    for g in range(groups):
        filters = weight[g * k : (g + 1) * k].astype(np.float64)
        for p in range(P):
            for q in range(Q):
                window = framed[:, g * c : (g + 1) * c, p * stride : p * stride + R, q * stride : q * stride + S]
                y[:, g * k : (g + 1) * k, p, q] = np.tensordot(window, filters, axes=((1, 2, 3), (1, 2, 3)))
    if bias is not None:
        y += bias.astype(np.float64)[:, None, None]
    return np.maximum(y, 0) if relu else y


def conv_backward(dy, x, weight, *, stride, top, left, P, Q, groups=1):
    """dx, dweight, dbias."""
    K, c, R, S = weight.shape
    k, (H, W) = K // groups, x.shape[2:]
    dy = dy.astype(np.float64)
    framed = _framed(x, stride, top, left, P, Q, R, S)
    dframed, dweight = np.zeros(framed.shape), np.zeros(weight.shape)
    for g in range(groups):
        C, filters = slice(g * c, (g + 1) * c), slice(g * k, (g + 1) * k)
        for p in range(P):
            for q in range(Q):
                window = (slice(None), C, slice(p * stride, p * stride + R), slice(q * stride, q * stride + S))
                dframed[window] += np.tensordot(dy[:, filters, p, q], weight[filters].astype(np.float64), axes=(1, 0))
        for r in range(R):
            for s in range(S):
                seen = framed[:, C, r : r + P * stride : stride, s : s + Q * stride : stride][:, :, :P, :Q]
                dweight[filters, :, r, s] = np.tensordot(dy[:, filters], seen, axes=((0, 2, 3), (0, 2, 3)))
    return dframed[:, :, top : top + H, left : left + W], dweight, dy.sum(axis=(0, 2, 3))


def local_forward(x, weight, bias=None, *, stride, top, left, P, Q, groups=1, relu=False):
    _, _, K, c, R, S = weight.shape
    k = K // groups
    framed = _framed(x, stride, top, left, P, Q, R, S)
    y = np.zeros((x.shape[0], K, P, Q))
    for p, q, g in np.ndindex(P, Q, groups):
        window = framed[:, g * c : (g + 1) * c, p * stride : p * stride + R, q * stride : q * stride + S]
        filters = slice(g * k, (g + 1) * k)
        y[:, filters, p, q] = np.einsum("ncrs,kcrs->nk", window, weight[p, q, filters].astype(np.float64))
    if bias is not None:
        y += bias
    return np.maximum(y, 0) if relu else y


def local_backward(dy, x, weight, *, stride, top, left, P, Q, groups=1):
    """dx, dweight, dbias."""
    _, _, K, c, R, S = weight.shape
    k, (H, W) = K // groups, x.shape[2:]
    dy = dy.astype(np.float64)
    framed = _framed(x, stride, top, left, P, Q, R, S)
    dframed, dweight = np.zeros(framed.shape), np.zeros(weight.shape)
    for p, q, g in np.ndindex(P, Q, groups):
        rows, columns = slice(p * stride, p * stride + R), slice(q * stride, q * stride + S)
        window = (slice(None), slice(g * c, (g + 1) * c), rows, columns)
        filters = slice(g * k, (g + 1) * k)
        dframed[window] += np.einsum("nk,kcrs->ncrs", dy[:, filters, p, q], weight[p, q, filters].astype(np.float64))
        dweight[p, q, filters] = np.einsum("nk,ncrs->kcrs", dy[:, filters, p, q], framed[window])
    return dframed[:, :, top : top + H, left : left + W], dweight, dy.sum(axis=0)


def linear_forward(x, weight, bias=None, relu=False):
    y = np.einsum("nc,kc->nk", x.astype(np.float64), weight.astype(np.float64))
    if bias is not None:
        y += bias
    return np.maximum(y, 0) if relu else y


def linear_backward(dy, x, weight):
    dy = dy.astype(np.float64)
    return np.einsum("nk,kc->nc", dy, weight), np.einsum("nk,nc->kc", dy, x), dy.sum(axis=0)


def pool_forward(x, size, stride, top, left, P, Q, last=False):
    """Maxima and their positions r * size + s: the first in row order, or the ``last``."""
    N, C, H, W = x.shape
    y, argmax = np.full((N, C, P, Q), -np.inf), np.zeros((N, C, P, Q), np.int64)
    for p in range(P):
        for q in range(Q):
            for r in range(size):
                for s in range(size):
                    h, w = p * stride - top + r, q * stride - left + s
                    if 0 <= h < H and 0 <= w < W:
                        value = x[:, :, h, w].astype(np.float64)
                        better = value >= y[:, :, p, q] if last else value > y[:, :, p, q]
                        y[:, :, p, q] = np.where(better, value, y[:, :, p, q])
                        argmax[:, :, p, q] = np.where(better, r * size + s, argmax[:, :, p, q])
    return y, argmax


def pool_backward(dy, argmax, H, W, size, stride, top, left):
    dx = np.zeros((*dy.shape[:2], H, W))
    for n, c, p, q in np.ndindex(dy.shape):
        r, s = divmod(int(argmax[n, c, p, q]), size)
        dx[n, c, p * stride - top + r, q * stride - left + s] += dy[n, c, p, q]
    return dx


def pool_window(p, q, size, stride, top, left, H, W):
    """The rows and columns of an image of H x W that window (p, q) has."""
    h, w = p * stride - top, q * stride - left
    return slice(max(h, 0), min(h + size, H)), slice(max(w, 0), min(w + size, W))


def avg_pool_forward(x, size, stride, top, left, P, Q, whole=False):
    """Means over windows clipped to the image; ``whole``: divided by the pixels of a window that is not clipped."""
    y = np.zeros((*x.shape[:2], P, Q))
    for p, q in np.ndindex(P, Q):
        rows, columns = pool_window(p, q, size, stride, top, left, *x.shape[2:])
        values = x[:, :, rows, columns].astype(np.float64)
        y[:, :, p, q] = values.sum(axis=(2, 3)) / (size**2 if whole else values[0, 0].size)
    return y


def avg_pool_backward(dy, H, W, size, stride, top, left, whole=False):
    dx = np.zeros((*dy.shape[:2], H, W))
    for p, q in np.ndindex(dy.shape[2:]):
        rows, columns = pool_window(p, q, size, stride, top, left, H, W)
        share = dx[:, :, rows, columns]
        share += dy[:, :, p, q, None, None].astype(np.float64) / (size**2 if whole else share[0, 0].size)
    return dx


def square(h, w, size, H, W):
    """The rows and columns of the window of pixel (h, w) in normalisation over a map."""
    top, left = h - size // 2, w - size // 2
    return slice(max(top, 0), min(top + size, H)), slice(max(left, 0), min(left + size, W))


def square_sums(values, size):
    sums = np.zeros(values.shape)
    for h, w in np.ndindex(values.shape[2:]):
        rows, columns = square(h, w, size, *values.shape[2:])
        sums[:, :, h, w] = values[:, :, rows, columns].astype(np.float64).sum(axis=(2, 3))
    return sums


def square_means(x, size):
    return square_sums(x, size) / square_sums(np.ones((1, 1, *x.shape[2:])), size)


def spatial_forward(x, u, size, alpha, beta, k):
    """What is divided, and of what the squares are summed, apart: both are x in rnorm."""
    return x * (k + alpha * square_sums(u.astype(np.float64) ** 2, size)) ** -beta


def spatial_backward(dy, x, u, size, alpha, beta, k):
    """dx where du/dx is 1, and the sum of the absolute values of its terms."""
    u = u.astype(np.float64)
    d = k + alpha * square_sums(u**2, size)
    dx, terms = dy * d**-beta, dy * x.astype(np.float64) * d ** (-beta - 1)
    magnitude = np.abs(dx)
    for h, w in np.ndindex(x.shape[2:]):
        window = (slice(None), slice(None), *square(h, w, size, *x.shape[2:]))
        share = 2 * alpha * beta * u[window] * terms[:, :, h, w, None, None]
        dx[window] -= share
        magnitude[window] += np.abs(share)
    return dx, magnitude


def blur_taps(size, std):
    """By their distance from the middle, for both axes at once."""
    at = np.arange(size) - size // 2
    taps = np.exp(-(at[:, None] ** 2 + at**2) / (2 * float(np.float32(std)) ** 2))
    return taps / taps.sum()


def blur(x, size, std):
    N, C, H, W = x.shape
    framed = np.zeros((N, C, H + size - 1, W + size - 1))
    framed[:, :, size // 2 : size // 2 + H, size // 2 : size // 2 + W] = x
    taps = blur_taps(size, std)
    return sum(taps[r, s] * framed[:, :, r : r + H, s : s + W] for r, s in np.ndindex(size, size))


def nailbed_pixels(side, stride):
    """The rows, or columns, that are taken."""
    count = (side + stride - 1) // stride
    return [(side - stride * (count - 1)) // 2 + i * stride for i in range(count)]


def lrn_window(channel: int, C: int, size: int, groups: int = 1) -> range:
    """The channels that are summed for ``channel``."""
    per_group = C // groups
    first = channel // per_group * per_group
    start = channel - size // 2
    return range(max(start, first), min(start + size, first + per_group))


def lrn_denominator(x, size, alpha, k, groups=1):
    squares = x.astype(np.float64) ** 2
    C = x.shape[1]
    return np.stack(
        [k + alpha * sum(squares[:, j] for j in lrn_window(i, C, size, groups)) for i in range(C)], axis=1
    ) + np.zeros(x.shape)


def lrn_forward(x, size, alpha, beta, k, groups=1):
    return x * lrn_denominator(x, size, alpha, k, groups) ** -beta


def lrn_backward(dy, x, size, alpha, beta, k, groups=1):
    """dx, and the sum of the absolute values of its terms."""
    d = lrn_denominator(x, size, alpha, k, groups)
    direct, C = dy * d**-beta, x.shape[1]
    shared = dy * x * d ** (-beta - 1)
    dx, magnitude = direct.copy(), np.abs(direct)
    for f in range(C):
        for i in lrn_window(f, C, size, groups):
            term = 2 * alpha * beta * x[:, i].astype(np.float64) * shared[:, f]
            dx[:, i] -= term
            magnitude[:, i] += np.abs(term)
    return dx, magnitude


def logistic(x):
    return np.exp(-np.logaddexp(0, -np.asarray(x, np.float64)))


def cost(x, labels, kind):
    """The terms of every image and feature, and their slopes."""
    x = np.asarray(x, np.float64)
    t = np.eye(x.shape[1])[labels]
    with np.errstate(all="ignore"):
        right = np.where(t == 1, x, 1 - x)  # what should be 1 of a probability
        return {
            "squares": lambda: (x**2, 2 * x),
            "squared-error": lambda: ((x - t) ** 2, 2 * (x - t)),
            "log-squared-error": lambda: (np.log1p((x - t) ** 2), 2 * (x - t) / (1 + (x - t) ** 2)),
            "cross-entropy": lambda: (
                np.minimum(-np.log(right), 50),
                np.where(-np.log(right) > 50, 0, (1 - 2 * t) / right),
            ),
            "logistic-cross-entropy": lambda: (
                np.minimum(np.logaddexp(0, np.where(t == 1, -x, x)), 50),
                logistic(x) - t,
            ),
        }[kind]()


# Of every activation: the output for the input x, and its slope there, with the parameters a and b of some.
ACTIVATIONS = {
    "relu": (lambda x: np.maximum(x, 0), lambda x: x > 0),
    "tanh": (lambda x, a, b: a * np.tanh(b * x), lambda x, a, b: a * b / np.cosh(b * x) ** 2),
    "logistic": (logistic, lambda x: logistic(x) * logistic(-x)),
    "linear": (lambda x, a, b: a * x + b, lambda x, a, b: np.full(np.shape(x), a)),
    "softrelu": (
        lambda x: np.where(x > 4, x, np.logaddexp(0, x)),
        lambda x: np.where(x > 4, 1, logistic(x)),
    ),
    "brelu": (lambda x, a: np.minimum(a, np.maximum(0, x)), lambda x, a: (x > 0) & (x < a)),
    "abs": (np.abs, lambda x: np.where(x > 0, 1, -1)),
    "square": (lambda x: x**2, lambda x: 2 * x),
    "sqrt": (np.sqrt, lambda x: 1 / (2 * np.sqrt(x))),
}


def softmax(logits):
    """Probabilities and their logarithms."""
    logits = logits.astype(np.float64)
    logs = logits - logits.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    return np.exp(logs), logs


def rank(logits, label: int) -> int:
    """How many classes come before ``label``, sorted by logit, descending, equal ones by index."""
    order = sorted(range(len(logits)), key=lambda k: (-logits[k], k))
    return order.index(label)


def sgd(weight, velocity, gradient, lr, momentum, weight_decay):
    """In float32, every operation rounded: the one result that is right to the bit. Without decay, weights take no part
    in their velocities."""
    lr, momentum, weight_decay = np.float32(lr), np.float32(momentum), np.float32(weight_decay)
    slope = (weight_decay * weight) + gradient if weight_decay else gradient
    velocity = (momentum * velocity) - (lr * slope)
    return weight + velocity, velocity


def philox_word(counter: tuple[int, int, int, int], seed: int) -> int:
    """Word 0 of Philox4x32-10 (Salmon et al. 2011), in Python's integers."""
    return philox_block(counter, seed)[0]


def philox_block(counter, seed: int) -> list[int]:
    c, key = list(counter), [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        high0, low0 = divmod(c[0] * 0xD2511F53, 2**32)
        high1, low1 = divmod(c[2] * 0xCD9E8D57, 2**32)
        c = [high1 ^ c[1] ^ key[0], low1, high0 ^ c[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return c


def rand_pool_places(x, size, stride, top, left, P, Q, seed, step, layer):
    """Where stochastic pooling finds its values: h * W + w of every window, (N, C, P, Q); sums are in float32."""
    N, C, H, W = x.shape
    places = np.empty((N, C, P, Q), np.int64)
    with np.errstate(all="ignore"):
        for n, c, p, q in np.ndindex(places.shape):
            h, w = p * stride - top, q * stride - left
            at = [(i, j) for i in range(max(h, 0), min(h + size, H)) for j in range(max(w, 0), min(w + size, W))]
            values = [x[n, c, i, j] for i, j in at]
            sums = np.cumsum(np.maximum(np.nan_to_num(values, nan=0.0, posinf=np.inf), 0), dtype=np.float32)
            word = philox_word((n * C * P * Q + (c * P + p) * Q + q, step, layer, 7), seed)
            wanted = np.float32(((word >> 8) + 1) * 2.0**-24) * sums[-1]
            if np.isnan(values).any() or not np.max(values) > 0:
                k = int(np.argmax(values))  # the first NaN, or maximum
            else:
                k = next(k for k, value in enumerate(values) if value > 0 and sums[k] >= wanted)
            places[n, c, p, q] = at[k][0] * W + at[k][1]
    return places


def rand_pool_mean(x, size, stride, top, left, P, Q):
    """The mean of what it draws."""
    x = np.asarray(x, np.float64)
    N, C = x.shape[:2]
    mean = np.empty((N, C, P, Q))
    for p, q in np.ndindex(P, Q):
        h, w = p * stride - top, q * stride - left
        part = x[:, :, max(h, 0) : h + size, max(w, 0) : w + size].reshape(N, C, -1)
        weights = np.maximum(part, 0)
        total = weights.sum(2)
        with np.errstate(invalid="ignore"):
            mean[:, :, p, q] = np.where(total > 0, (weights**2).sum(2) / total, part.max(2))
    return mean


def dropout_mask(N, features, p, seed, step, layer):
    """True where an element is kept."""
    words = [philox_word((e, step, layer, 0), seed) for e in range(N * features)]
    return np.array(words, np.uint64).reshape(N, features) >= round(p * 2**32)


def planar_colours(luma, cb, cr):
    """Planes (n, H, W) and (n, H / 2, W / 2), rounded up, to (n, H, W, 3) bytes."""
    H, W = luma.shape[1:]
    blue, red = (plane.repeat(2, 1).repeat(2, 2)[:, :H, :W].astype(np.float64) - 128 for plane in (cb, cr))
    green = np.floor((-22554 * blue - 46802 * red) / 65536 + 0.5)
    red, blue = np.floor(91881 * red / 65536 + 0.5), np.floor(116130 * blue / 65536 + 0.5)
    return np.clip(luma[..., None] + np.stack([red, green, blue], -1), 0, 255).astype(np.uint8)


def ingest(images, windows, noise, mean, crop, scale):
    """(n, H, W, 3) bytes to (n, 3, crop, crop); ``scale`` is one number or three."""
    scale = np.broadcast_to(np.float64(scale), 3)[:, None, None]
    y = np.zeros((len(images), 3, crop, crop))
    for n, (top, left, flip) in enumerate(windows):
        window = images[n, top : top + crop, left : left + crop].astype(np.float64)
        if flip:
            window = window[:, ::-1]
        y[n] = (window.transpose(2, 0, 1) - mean + noise[n][:, None, None]) * scale
    return y
