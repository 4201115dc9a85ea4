"""Gates: from a noisy image and its noise level to one logit per expert.

A gate is any pytree that is called as ``gate(z, gamma, keys=None)`` with gamma [B] and returns logits
[B, K], and that says by ``smooth`` whether they are continuous in z. `Gate` is the network that is
trained; `FixedGate` and `RandomGate` are baselines.
"""

import itertools

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxmerge.experts.layers import ZERO, sinusoidal

INPUTS = ("z", "gamma")
# Angle of the fastest frequency over the whole noise range, about five turns. Weights that move faster
# with gamma would cost an ODE solver steps and fit noise.
TURNS = 30.0


class Gate(nnx.Module):
    """Strided convolutions over z, a noise embedding, and a two-layer MLP to K logits.

    The last layer starts at zero, so that a fresh gate is the uniform average of its experts.

    Args:
        count: number K of experts.
        gamma_range: (low, high) noise levels that are mapped to [0, 1] for the embedding.
        shape: (H, W, C) of the images.
        inputs: "z" sees image and noise level, "gamma" the noise level alone.
        width: channels of the first convolution; each further one has twice as many, at most 4 times.
        depth: number of convolutions, each halving the resolution.
        hidden: width of the MLP's hidden layer.
        embedding: width of the noise embedding, even.
        dropout: rate on the MLP's hidden layer, active where keys are given.

    Raises:
        ValueError: an unknown input, or sizes that no network can have.

    Example:
        >>> gate = Gate(4, gamma_range=(-7.9, 5.0), shape=(8, 8, 1), rngs=nnx.Rngs(0))
    """

    smooth = True

    def __init__(
        self,
        count: int,
        *,
        gamma_range: tuple[float, float],
        shape: tuple[int, int, int],
        inputs: str = "z",
        width: int = 32,
        depth: int = 2,
        hidden: int = 64,
        embedding: int = 32,
        dropout: float = 0.1,
        rngs: nnx.Rngs,
    ):
        if inputs not in INPUTS:
            raise ValueError(f"a gate's inputs must be one of {INPUTS}, got {inputs!r}.")
        if min(count, width, hidden) < 1 or embedding < 4 or embedding % 2 or not 0 <= dropout < 1:
            raise ValueError(
                "a gate needs at least one expert, a positive width and hidden size, an even embedding of at least 4 "
                f"and a dropout in [0, 1), got {count=}, {width=}, {hidden=}, {embedding=} and {dropout=}."
            )
        self.count, self.gamma_range, self.inputs = count, tuple(gamma_range), inputs
        self.embedding, self.dropout = embedding, dropout
        features, self.cells = 0, (1, 1)
        if inputs == "z":
            widths = [min(2**level, 4) * width for level in range(depth)]
            self.convs = nnx.List(
                [
                    nnx.Conv(a, b, (3, 3), strides=2, padding=1, rngs=rngs)
                    for a, b in itertools.pairwise([shape[2], *widths])
                ]
            )
            # What is left of the image is averaged over a 2x2 grid of cells, where its size allows.
            left = tuple(-(-size // 2**depth) for size in shape[:2])
            self.cells = tuple(2 if size % 2 == 0 else 1 for size in left)
            features = (widths[-1] if widths else shape[2]) * self.cells[0] * self.cells[1]
        self.dense0 = nnx.Linear(features + embedding, hidden, rngs=rngs)
        self.dense1 = nnx.Linear(hidden, count, kernel_init=ZERO, rngs=rngs)

    def __call__(
        self, z: Float[Array, "B H W C"], gamma: Float[Array, " B"], *, keys: Key[Array, " B"] | None = None
    ) -> Float[Array, "B K"]:
        """Logits, at least float32; one key per image switches dropout on."""
        dtype = jnp.promote_types(z.dtype, jnp.float32)
        low, high = self.gamma_range
        position = (gamma.astype(dtype) - low) / (high - low)
        features = [sinusoidal(TURNS * position, self.embedding)]
        if self.inputs == "z":
            features.append(self._encode(z.astype(dtype)))
        h = jax.nn.silu(self.dense0(jnp.concatenate(features, axis=-1)))
        if keys is not None and self.dropout > 0:
            keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.dropout, h.shape[1:]))(keys)
            h = jnp.where(keep, h / (1 - self.dropout), 0)
        return self.dense1(h)

    def _encode(self, z):
        h = z
        for conv in self.convs:
            h = jax.nn.silu(conv(h))
        b, height, width, c = h.shape
        rows, columns = self.cells
        return h.reshape(b, rows, height // rows, columns, width // columns, c).mean((2, 4)).reshape(b, -1)


def offset_logits(gate: Gate, offset: Float[np.ndarray, " K"]) -> Gate:
    """The gate with constants added to its logits, for example 3 on one expert to start near a collapse."""
    moved = jax.tree.map(lambda leaf: leaf, gate)
    moved.dense1.bias = nnx.Param(gate.dense1.bias[...] + jnp.asarray(offset, jnp.float32))
    return moved


@flax.struct.dataclass
class FixedGate:
    """The same weights for every image and noise level: uniform averages, one-hot choices.

    Attributes:
        logits: [K].
    """

    logits: Float[Array, " K"]
    smooth = True

    @classmethod
    def of_weights(cls, weights: Float[np.ndarray, " K"]) -> "FixedGate":
        """From non-negative weights [K]; a weight of zero stays zero in float32."""
        return cls(jnp.log(jnp.maximum(jnp.asarray(weights, jnp.float32), 1e-38)))

    @property
    def count(self) -> int:
        return len(self.logits)

    def __call__(
        self, z: Float[Array, "B H W C"], gamma: Float[Array, " B"], *, keys=None
    ) -> Float[Array, "B K"]:
        dtype = jnp.promote_types(z.dtype, jnp.float32)
        return jnp.broadcast_to(self.logits.astype(dtype), (len(z), len(self.logits)))


@flax.struct.dataclass
class RandomGate:
    """Weights drawn uniformly from the simplex for each image at each step, without learning anything.

    The draw follows from the key and the bits of z and gamma, so that it depends on neither batch nor
    device; it jumps with z everywhere.

    Attributes:
        key: of all draws.
        count: number K of experts.
    """

    key: Key[Array, ""]
    count: int = flax.struct.field(pytree_node=False)
    smooth = False

    def __call__(
        self, z: Float[Array, "B H W C"], gamma: Float[Array, " B"], *, keys=None
    ) -> Float[Array, "B K"]:
        def bits(x):
            return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)

        def draw(image, level):
            # Odd factors, so that permuted pixels differ.
            factors = 2 * jnp.arange(image.size, dtype=jnp.uint32) + 1
            key = jax.random.fold_in(self.key, jnp.sum(bits(image).ravel() * factors))
            return jnp.log(jax.random.exponential(jax.random.fold_in(key, bits(level)), (self.count,)))

        return jax.vmap(draw)(z, gamma)
