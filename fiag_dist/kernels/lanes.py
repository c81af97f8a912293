"""Two products of small matrices, in vector registers: what numba's own loops would keep in memory.

Matrices lie lane by lane: a row has one number for each of CHUNK points. Both are written in LLVM's vector instructions, which any CPU has in some
width; the tiles fill the registers of AVX-512, or of AVX2.
"""

from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fiag_dist.kernels.vectors import FLAT, LANES, PLACE, WIDE

ROWS, VECTORS = (8, 2) if WIDE else (4, 3)
"""The tile of a product that stays in registers: rows, and vectors of LANES points. Matrices are padded to a multiple of ROWS."""
CHUNK = 256 // (VECTORS * LANES) * (VECTORS * LANES)
"""Points that are worked on together: some layers of them stay in a core's cache."""
DOWN, ACROSS = (4, 4) if WIDE else (4, 2)
"""Rows and columns of the tile of `add_outer` that stay in registers; ROWS is a multiple of both."""

_float = ir.FloatType()
_vector = ir.VectorType(_float, LANES)


class _Code:
    """Writes vector instructions on float32 arrays."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self.builder = builder
        self.values = list(arguments)
        for k, kind in enumerate(signature.args):
            if isinstance(kind, types.Array):
                self.values[k] = context.make_array(kind)(context, builder, arguments[k]).data
        self.index = context.get_value_type(types.intp)
        multiply_add = ir.FunctionType(_vector, [_vector] * 3)
        self._fma = cgutils.get_or_insert_function(builder.module, multiply_add, f"llvm.fma.v{LANES}f32")
        total = ir.FunctionType(_float, [_float, _vector])
        self._sum = cgutils.get_or_insert_function(builder.module, total, f"llvm.vector.reduce.fadd.v{LANES}f32")

    def at(self, array: Any, *terms: Any) -> Any:
        """Address of the number at the sum of `terms`."""
        place = ir.Constant(self.index, 0)
        for term in terms:
            place = self.builder.add(place, ir.Constant(self.index, term) if isinstance(term, int) else term)
        return self.builder.gep(array, [place], source_etype=_float)

    def times(self, value: Any, factor: Any) -> Any:
        return self.builder.mul(value, ir.Constant(self.index, factor) if isinstance(factor, int) else factor)

    def load(self, address: Any) -> Any:
        return self.builder.load(self.builder.bitcast(address, _vector.as_pointer()), align=4)

    def store(self, vector: Any, address: Any) -> None:
        self.builder.store(vector, self.builder.bitcast(address, _vector.as_pointer()), align=4)

    def number(self, address: Any) -> Any:
        return self.builder.load(address, align=4)

    def everywhere(self, number: Any) -> Any:
        """A vector of one number."""
        one = self.builder.insert_element(ir.Constant(_vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return self.builder.shuffle_vector(one, one, mask)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        return self.builder.call(self._fma, [a, b, c])

    def total(self, vector: Any) -> Any:
        return self.builder.call(self._sum, [ir.Constant(_float, 0.0), vector], fastmath=("reassoc",))

    def loop(self, count: Any, num_sums: int, body: Any) -> list[Any]:
        """`body(k, sums)` for k = 0 .. count - 1 (count >= 1), from sums of zero; returns the last sums."""
        builder, entry = self.builder, self.builder.block
        start = ir.Constant(_vector, None)
        inside, after = builder.append_basic_block("lanes.loop"), builder.append_basic_block("lanes.end")
        builder.branch(inside)
        builder.position_at_end(inside)
        k = builder.phi(self.index)
        sums = [builder.phi(_vector) for _ in range(num_sums)]
        k.add_incoming(ir.Constant(self.index, 0), entry)
        for total in sums:
            total.add_incoming(start, entry)
        found = body(k, sums)
        following = builder.add(k, ir.Constant(self.index, 1))
        k.add_incoming(following, builder.block)
        for total, value in zip(sums, found, strict=True):
            total.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
        builder.position_at_end(after)
        return found


@intrinsic
def multiply(typingctx, out, out_at, weights, weights_at, entered, entered_at, num, floor):
    """ROWS rows of a product: out[r, p] = max(floor, sum over k < num of weights[k, r] * entered[k, p]); NaN stays.

    Flat arrays, from the places given on; weights [num, ROWS], entered [num, CHUNK], out [ROWS, CHUNK].
    """
    signature = types.void(FLAT, PLACE, FLAT, PLACE, FLAT, PLACE, PLACE, types.float32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(context, builder, signature, arguments)
        out, out_at, weights, weights_at, entered, entered_at, num, floor = code.values
        floors = code.everywhere(floor)
        for first in range(0, CHUNK, VECTORS * LANES):

            def body(k: Any, sums: list[Any], first: int = first) -> list[Any]:
                row = code.times(k, CHUNK)
                points = [code.load(code.at(entered, entered_at, row, first + v * LANES)) for v in range(VECTORS)]
                found = []
                for r in range(ROWS):
                    weight = code.everywhere(code.number(code.at(weights, weights_at, code.times(k, ROWS), r)))
                    for v in range(VECTORS):
                        found.append(code.multiply_add(weight, points[v], sums[r * VECTORS + v]))
                return found

            for place, total in enumerate(code.loop(num, ROWS * VECTORS, body)):
                r, v = divmod(place, VECTORS)
                below = builder.fcmp_ordered("<", total, floors)
                code.store(builder.select(below, floors, total), code.at(out, out_at, r * CHUNK + first + v * LANES))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_outer(typingctx, out, out_at, stride, left, left_at, right, right_at):
    """DOWN x ACROSS numbers of a product over the points of a chunk: out[r, c] += sum over p of left[r, p] * right[c, p].

    Flat arrays, from the places given on; left [DOWN, CHUNK], right [ACROSS, CHUNK]; out's rows are `stride` apart.
    """
    signature = types.void(FLAT, PLACE, PLACE, FLAT, PLACE, FLAT, PLACE)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(context, builder, signature, arguments)
        out, out_at, stride, left, left_at, right, right_at = code.values

        def body(k: Any, sums: list[Any]) -> list[Any]:
            first = code.times(k, LANES)
            lefts = [code.load(code.at(left, left_at, first, r * CHUNK)) for r in range(DOWN)]
            rights = [code.load(code.at(right, right_at, first, c * CHUNK)) for c in range(ACROSS)]
            return [code.multiply_add(lefts[n // ACROSS], rights[n % ACROSS], total) for n, total in enumerate(sums)]

        num = ir.Constant(code.index, CHUNK // LANES)
        for n, total in enumerate(code.loop(num, DOWN * ACROSS, body)):
            address = code.at(out, out_at, code.times(stride, n // ACROSS), n % ACROSS)
            builder.store(builder.fadd(code.number(address), code.total(total)), address, align=4)
        return context.get_dummy_value()

    return signature, generate
