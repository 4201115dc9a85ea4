"""One trunk, K experts: zero-initialised residual adapters in place of K full networks.

A parallel residual adapter (Rebuffi et al. 2018) adds a 1x1 convolution of the same input to a
convolution's output, here with a bottleneck of `rank` channels,

    y = W * x + V (U x),    V = 0 at the start.

That is the convolution with U V added to the centre tap of its kernel, and of a dense layer with U V
added to its matrix (Hu et al. 2021). So adapters fit any network without a change of its code, cost no
activations, and all K experts equal the trunk until they are trained.
"""

from collections.abc import Iterator

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmerge.experts.base import Expert

Adapter = dict[str, tuple[Float[Array, "I R"], Float[Array, "R O"]]]


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def _is_kernel(name: str, leaf) -> bool:
    return name.endswith("kernel") and leaf.ndim in (2, 4)


@flax.struct.dataclass
class AdapterBank:
    """K experts that share a trunk; a sequence of experts for `Gated`, a pytree with the trunk held once.

    Attributes:
        trunk: the shared expert.
        adapters: for each expert, kernel name -> (U, V).
    """

    trunk: Expert
    adapters: tuple[Adapter, ...]

    def __len__(self) -> int:
        return len(self.adapters)

    def __getitem__(self, k: int) -> Expert:
        """The trunk with expert k's adapters added to its kernels."""
        adapter = self.adapters[k]

        def adapted(path, leaf):
            name = _name(path)
            return _add(leaf, *adapter[name]) if name in adapter else leaf

        return jax.tree_util.tree_map_with_path(adapted, self.trunk)

    def __iter__(self) -> Iterator[Expert]:
        return (self[k] for k in range(len(self)))


def _add(kernel, down, up):
    delta = (down @ up).astype(kernel.dtype)
    if kernel.ndim == 2:
        return kernel + delta
    height, width = kernel.shape[:2]
    return kernel.at[height // 2, width // 2].add(delta)


def share_trunk(trunk: Expert, count: int, *, rank: int = 4, seed: int = 0) -> AdapterBank:
    """K experts from one, each with adapters on every kernel that is wider than the rank.

    Args:
        trunk: any network expert.
        count: K.
        rank: channels of the bottleneck.
        seed: of the random halves U; the halves V start at zero.

    Raises:
        ValueError: a count or rank below 1, or no kernel that is wide enough.
    """
    if count < 1 or rank < 1:
        raise ValueError(f"count and rank of adapters must be at least 1, got {count} and {rank}.")
    leaves = jax.tree_util.tree_flatten_with_path(trunk)[0]
    kernels = {_name(path): leaf for path, leaf in leaves}
    kernels = {n: x for n, x in kernels.items() if _is_kernel(n, x) and min(x.shape[-2:]) > rank}
    if not kernels:
        raise ValueError(
            f"adapters of rank {rank} need kernels with more than {rank} channels, got none in "
            f"{type(trunk).__name__}; choose a smaller rank or a wider trunk."
        )
    draw = np.random.Generator(np.random.PCG64(seed))

    def adapter() -> Adapter:
        made = {}
        for name, kernel in sorted(kernels.items()):
            c_in, c_out = kernel.shape[-2:]
            down = draw.normal(size=(c_in, rank)) / np.sqrt(c_in)
            made[name] = (jnp.asarray(down, kernel.dtype), jnp.zeros((rank, c_out), kernel.dtype))
        return made

    return AdapterBank(trunk, tuple(adapter() for _ in range(count)))
