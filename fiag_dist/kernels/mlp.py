"""Small bias-free networks with ReLU, of two or more layers, asked at many points on the CPU; and their gradient.

Points go through all layers in chunks that stay in a core's cache, and nothing but the input is kept for the gradient: its chunks are computed again.
Gradients of weights are summed part by part, in an order that knows nothing of threads: no atomics, the same bits with any number of threads.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numba import njit, prange
from torch import Tensor

from fiag_dist.kernels.lanes import ACROSS, CHUNK, DOWN, ROWS, add_outer, multiply
from fiag_dist.kernels.launch import PARALLEL, array, check, launch
from fiag_dist.kernels.vectors import LANES, choose, everywhere, load, store

PARTS = 8
"""Pieces of the work: at most this many threads have something to do."""

_f4 = np.float32
_ANY = np.float32(-np.inf)


@njit
def _padded(num):
    return (num + ROWS - 1) // ROWS * ROWS


@njit
def _pack(weight, turned, out, first):
    """Lays a weight [J, K] out for `multiply`, J in tiles of ROWS: out[first:] as [J / ROWS, K, ROWS]; `turned`: its transpose. Returns what follows."""
    num_j, num_k = (weight.shape[1], weight.shape[0]) if turned else weight.shape
    for tile in range(_padded(num_j) // ROWS):
        for k in range(num_k):
            for r in range(ROWS):
                j = tile * ROWS + r
                value = _f4(0)
                if j < num_j:
                    value = weight[k, j] if turned else weight[j, k]
                out[first] = value
                first += 1
    return first


@njit
def _packed(numbers, widths, turned):
    """All weights, laid out for `multiply` one after the other, and where each begins."""
    layers = len(widths) - 1
    places = np.zeros(layers, np.intp)
    total = 0
    for k in range(layers):
        total += _padded(widths[k]) * widths[k + 1] if turned else _padded(widths[k + 1]) * widths[k]
    out = np.empty(total, _f4)
    first = at = 0
    for k in range(layers):
        size = widths[k] * widths[k + 1]
        places[k] = at
        at = _pack(numbers[first : first + size].reshape(widths[k + 1], widths[k]), turned, out, at)
        first += size
    return out, places


@njit
def _bring(rows, begin, end, out, first):
    """Columns begin .. end of rows [K, N] as a chunk at out[first:], zeros behind and in the rows of the padding."""
    num = end - begin
    for k in range(_padded(rows.shape[0])):
        at = first + k * CHUNK
        for p in range(CHUNK):
            out[at + p] = _f4(0)
        if k < rows.shape[0]:
            for p in range(num):
                out[at + p] = rows[k, begin + p]


@njit
def _layer(packed, place, num_in, num_out, entered, entered_at, out, out_at, floor):
    for tile in range(_padded(num_out) // ROWS):
        multiply(  # type: ignore[call-arg]
            out,
            out_at + tile * ROWS * CHUNK,
            packed,
            place + tile * num_in * ROWS,
            entered,
            entered_at,
            num_in,
            floor,
        )


@njit
def _keep_where(maps, v, shown, rows):
    """Zeros in the rows of a gradient at maps[v:] wherever what was shown, at maps[shown:], is not above 0: the gradient of ReLU."""
    nothing = everywhere(_f4(0))
    for at in range(0, rows * CHUNK, LANES):
        store(maps, v + at, choose(load(maps, shown + at) > nothing, load(maps, v + at), nothing))


@njit
def _shares(num):
    """Chunks of N points, and the pieces that they are dealt into."""
    chunks = (num + CHUNK - 1) // CHUNK
    return chunks, min(PARTS, chunks)


@njit(parallel=PARALLEL, cache=True)
def _forward(entered, numbers, widths, out):
    """Fills out [last width, N] from entered [first width, N]; numbers: all weights, flat."""
    layers = len(widths) - 1
    packed, places = _packed(numbers, widths, False)
    room = _padded(widths.max()) * CHUNK
    num = entered.shape[1]
    chunks, parts = _shares(num)
    for part in prange(parts):
        maps = np.empty(2 * room, _f4)
        for chunk in range(part * chunks // parts, (part + 1) * chunks // parts):
            begin, end = chunk * CHUNK, min(num, chunk * CHUNK + CHUNK)
            _bring(entered, begin, end, maps, 0)
            for k in range(layers):
                before, after = k % 2 * room, (k + 1) % 2 * room
                floor = _ANY if k == layers - 1 else _f4(0)
                _layer(packed, places[k], widths[k], widths[k + 1], maps, before, maps, after, floor)
            last = layers % 2 * room
            for j in range(widths[layers]):
                for p in range(end - begin):
                    out[j, begin + p] = maps[last + j * CHUNK + p]


@njit(parallel=PARALLEL, cache=True)
def _backward(entered, numbers, widths, v_out, v_entered, v_parts):
    """Fills v_entered [first width, N], where it has rows, and the weights' gradient part by part, v_parts [PARTS, all], zero before."""
    layers = len(widths) - 1
    packed, places = _packed(numbers, widths, False)
    turned, turned_places = _packed(numbers, widths, True)
    wide = _padded(widths.max())
    room = wide * CHUNK
    num = entered.shape[1]
    chunks, parts = _shares(num)
    for part in prange(parts):
        maps = np.empty((layers + 2) * room, _f4)  # what entered each layer, then two gradients in turn
        sums = np.zeros(layers * wide * wide, _f4)
        for chunk in range(part * chunks // parts, (part + 1) * chunks // parts):
            begin, end = chunk * CHUNK, min(num, chunk * CHUNK + CHUNK)
            _bring(entered, begin, end, maps, 0)
            for k in range(layers - 1):
                _layer(packed, places[k], widths[k], widths[k + 1], maps, k * room, maps, (k + 1) * room, _f4(0))
            v, v_next = layers * room, (layers + 1) * room
            _bring(v_out, begin, end, maps, v)
            for k in range(layers - 1, -1, -1):
                for j in range(0, _padded(widths[k + 1]), DOWN):
                    for i in range(0, _padded(widths[k]), ACROSS):
                        at = (k * wide + j) * wide + i
                        add_outer(sums, at, wide, maps, v + j * CHUNK, maps, k * room + i * CHUNK)  # type: ignore[call-arg]
                if k > 0 or v_entered.shape[0]:
                    _layer(turned, turned_places[k], widths[k + 1], widths[k], maps, v, maps, v_next, _ANY)
                if k > 0:
                    _keep_where(maps, v_next, k * room, widths[k])
                v, v_next = v_next, v
            for i in range(v_entered.shape[0]):
                for p in range(end - begin):
                    v_entered[i, begin + p] = maps[v + i * CHUNK + p]
        first = 0
        for k in range(layers):
            for j in range(widths[k + 1]):
                for i in range(widths[k]):
                    v_parts[part, first] = sums[(k * wide + j) * wide + i]
                    first += 1


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs, *weights):
        entered = array(inputs.T)
        widths = np.array([inputs.shape[1], *(len(weight) for weight in weights)])
        numbers = array(torch.cat([weight.detach().reshape(-1) for weight in weights]))
        out = np.empty((widths[-1], len(inputs)), np.float32)
        launch(_forward, entered, numbers, widths, out)
        ctx.save_for_backward(inputs)  # whose memory `entered` may be: torch notices when it is changed meanwhile
        ctx.packed = (entered, numbers, widths)
        return torch.from_numpy(out).T

    @staticmethod
    def backward(ctx: Any, *v_outputs):
        check("mlp's gradient", outputs=v_outputs[0])
        _ = ctx.saved_tensors
        entered, numbers, widths = ctx.packed
        v_out = array(v_outputs[0].T)
        v_entered = np.empty(entered.shape if ctx.needs_input_grad[0] else (0, 0), np.float32)
        v_parts = np.zeros((PARTS, len(numbers)), np.float32)
        launch(_backward, entered, numbers, widths, v_out, v_entered, v_parts)
        shapes = list(zip(widths[1:].tolist(), widths[:-1].tolist(), strict=True))
        v_weights = torch.from_numpy(v_parts.sum(0)).split([rows * columns for rows, columns in shapes])
        v_inputs = torch.from_numpy(v_entered).T if len(v_entered) else None
        return v_inputs, *(v.reshape(shape) for v, shape in zip(v_weights, shapes, strict=True))


def mlp(inputs: Float[Tensor, "n k"], *weights: Float[Tensor, "_ _"]) -> Float[Tensor, "n j"]:
    """Outputs of linear layers with ReLU between them at N points; CPU, float32.

    weights: [outputs, inputs] of each layer. Gradients to inputs and weights. Numbers that are not finite are refused in checked mode (`check`);
    else they spread to what depends on them.
    """
    check("mlp", inputs=inputs, **{f"weights_{k}": weight for k, weight in enumerate(weights)})
    return _Mlp.apply(inputs, *weights)  # type: ignore[return-value]
