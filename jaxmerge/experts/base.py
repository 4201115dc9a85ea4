"""The one interface of the house: an expert predicts the noise in a noisy image.

``eps_hat(z, gamma)`` with ``z = alpha(gamma) x + sigma(gamma) eps`` in the variance-preserving
convention and VDM's pixel scale. Networks, closed-form models and merges of experts are all experts,
and nothing that takes an expert asks which kind it got.
"""

import abc
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxmerge import noise
from jaxmerge.experts.labels import Labels, rows_of
from jaxmerge.noise import GAMMA_SLACK, PixelScale


class Piece(NamedTuple):
    """A range of noise levels in which one smooth expert answers.

    Attributes:
        gamma_low: lower end; a float, or a traced scalar where a merge's threshold is traced.
        gamma_high: upper end, above `gamma_low`.
        expert: the expert that answers on the closed range.
    """

    gamma_low: float | Float[Array, ""]
    gamma_high: float | Float[Array, ""]
    expert: "Expert"


class Expert(abc.ABC):
    """Predicts the noise eps in z = alpha x + sigma eps.

    Concrete experts are frozen dataclasses and pytrees: parameters are leaves, architecture is
    static. They pass through ``jit``, ``pmap``, ``vmap`` and ``lax.cond`` as they are.
    """

    @abc.abstractmethod
    def eps_hat(
        self, z: Float[Array, "B H W C"], gamma: Float[Array, ""] | Float[Array, " B"] | float
    ) -> Float[Array, "B H W C"]:
        """The predicted noise, in z's dtype.

        Args:
            z: noisy images [B, H, W, C], variance preserving, VDM's pixel scale.
            gamma: -log SNR, a scalar or one per image [B] (a switch takes scalars only).
        """

    @property
    @abc.abstractmethod
    def gamma_range(self) -> tuple[float, float]:
        """(low, high): the noise levels that this expert was made for."""

    @property
    def pixel_scale(self) -> PixelScale | None:
        """The grey levels this expert was made for; None where any do (closed-form experts)."""
        return None

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(H, W, C) this expert was made for; None where any will do."""
        return None

    @property
    def smooth(self) -> bool:
        """Whether eps_hat is continuous in z; False where a choice of experts jumps with it."""
        return True

    def network_eps(
        self, z: Float[Array, "B H W C"], gamma: Float[Array, " B"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B H W C"]:
        """`eps_hat` in training: a key switches dropout on in experts that have it."""
        return self.eps_hat(z, gamma)

    def pieces(self) -> tuple[Piece, ...]:
        """Ordered pieces between which the field jumps; one for a single network."""
        low, high = self.gamma_range
        return (Piece(low, high, self),)

    @property
    def classes(self) -> int | None:
        """Number of classes of a conditional expert; None where there are none."""
        return None

    def with_labels(self, labels: Labels) -> "Expert":
        """This expert for images of given classes, an expert again.

        Args:
            labels: a class for all images, classes [B], or one-hot or soft rows [B, K] or [K]. With one
                label per image the expert takes batches of exactly B images, in that order.

        Raises:
            ValueError: an expert without classes, or labels that do not fit them.

        Example:
            >>> sample(edm.with_labels(3), jnp.arange(16), key=jax.random.key(0))
        """
        raise ValueError(
            f"the expert {type(self).__name__} is not conditional and takes no labels; leave the labels out or "
            "choose a network that was trained with classes."
        )

    def label_rows(self, labels: Labels, count: int) -> Float[Array, "N K"]:
        """Labels of `count` images as rows, which can be cut into batches for `with_labels`.

        Raises:
            ValueError: as `with_labels`, or labels for another number of images.
        """
        if self.classes is None:
            self.with_labels(labels)  # refuses
        return rows_of(labels, self.classes, count)

    def of_image(self, index: Int[Array, ""]) -> "Expert":
        """This expert for image `index` of its batch (or images, [N]): their labels where each has one."""
        return self

    def denoise(self, z: Float[Array, "B H W C"], gamma) -> Float[Array, "B H W C"]:
        """The denoised image x_hat = (z - sigma eps_hat) / alpha."""
        g = per_image(gamma, z)
        return (z - noise.sigma(g) * self.eps_hat(z, gamma)) / noise.alpha(g)


def per_image(gamma, z: Float[Array, "B H W C"]) -> Float[Array, "B 1 1 1"]:
    """gamma (scalar or [B]) in z's dtype and in a shape that broadcasts against images."""
    gamma = jnp.broadcast_to(jnp.asarray(gamma, z.dtype), z.shape[:1])
    return gamma[:, None, None, None]


def check_range(expert: Expert, gamma_low: float, gamma_high: float, *, what: str) -> None:
    """Refuses concrete noise levels outside an expert's range (slack 0.02 in gamma).

    Raises:
        ValueError: names the asked range, the expert's and what was to be done.
    """
    low, high = expert.gamma_range
    if gamma_low < low - GAMMA_SLACK or gamma_high > high + GAMMA_SLACK:
        raise ValueError(
            f"{what} needs gamma from {gamma_low:.4f} to {gamma_high:.4f}, but the expert "
            f"{type(expert).__name__} was made for {low:.4f} to {high:.4f}; choose noise levels inside "
            "its range or another expert."
        )
