"""What a batch of fits costs: memory from its shapes, before anything of that size is made, and time from its steps."""
import time

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct

from dipddpm_jax import devices, memory
from dipddpm_jax.commands.fits import OVERLAP, repeats
from dipddpm_jax.commands.tiles import Box, tile_boxes
from dipddpm_jax.config.dip import CROSS_FIT, DipConfig
from dipddpm_jax.convolution.cost import divisor
from dipddpm_jax.dip.crossfit import recommended_fit
from dipddpm_jax.dip.fit import Dip, DipProblem
from dipddpm_jax.dip.variants import VARIANTS
from dipddpm_jax.errors import UserError

LONG = 60  # seconds: a restoration that will take longer says so
SHORT = 2  # seconds that one device call should take at most
MOST_STEPS = 50  # in one device call
HELD_PIXELS = 10 * 256**2  # of all fits at once, that every machine's memory holds
STEP_SECONDS = {"skip": 2e-5}  # for each pixel, on two slow cores; the other networks take 3e-6 or less


def code_shape(config: DipConfig, size: tuple[int, int], channels: int) -> tuple[int, int, int]:
    """Shape of the code, the network's input, for a picture of this size."""
    if config.code == "image" or VARIANTS[config.variant].starts_from_measurement:
        return *size, channels
    if config.code == "meshgrid":
        return *size, 2
    return (-(-size[0] // 32), -(-size[1] // 32), 128) if config.network == "decoder" else (*size, 32)


def fit_bytes(config: DipConfig, fit: Dip, size: tuple[int, int], channels: int, count: int) -> tuple[int, int]:
    """(bytes that `count` fits of this size hold, bytes of work space for the gradients of those that run at once).

    The first is exact: states before and after a device call, and problems. The second is a bound on what reverse-mode
    differentiation stores, and may be twice what a compiler needs.
    """
    scale = config.factor if config.task == "superres" else 1
    y = ShapeDtypeStruct((size[0] // scale, size[1] // scale, channels), jnp.float32)
    picture = ShapeDtypeStruct((*size, channels), jnp.float32)
    code = ShapeDtypeStruct(code_shape(config, size, channels), jnp.float32)
    weight = ShapeDtypeStruct((*y.shape[:2], 1), jnp.float32)
    problem = DipProblem(code, y, picture, weight, weight, ShapeDtypeStruct((), jnp.float32))
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(lambda key, code: fit.network.init(key, code[None]), key, code)
    state = jax.eval_shape(fit.start, problem, variables, key)
    draws = ShapeDtypeStruct((fit.code_rule.draws, *code.shape), jnp.float32)

    def output(params, statistics, codes):
        return fit.network.apply({"params": params, **statistics}, codes, train=True, mutable=["batch_stats"])[0].sum()

    at_once = count
    if jax.default_backend() == "cpu":  # each device has a share of the fits, one after the other
        at_once = next(n for n in range(jax.local_device_count(), 0, -1) if count % n == 0)
    held = count * (2 * devices.tree_bytes(state) + devices.tree_bytes(problem))
    return held, at_once * devices.gradient_bytes(output, state.params, state.statistics, draws)


def fit_boxes(config: DipConfig, size: tuple[int, int]) -> list[Box]:
    """The tiles in which pictures of this size are fitted."""
    return tile_boxes(size, config.tile, OVERLAP, config.factor if config.task == "superres" else 1)


def check_fit_memory(config: DipConfig, fit: Dip, boxes: list[Box], channels: int, pictures: int) -> str:
    """What the fits of so many pictures will cost, as a sentence. Raises UserError when it is more than there is, even
    if the work space turns out to be half of its bound."""
    count, side = pictures * repeats(config) * len(boxes), boxes[0][2:]
    held, work = fit_bytes(config, fit, side, channels, count)
    what = f"{count} fit{'s' * (count != 1)} of {side[1]}x{side[0]} pixels (--network {config.network})"
    try:
        devices.check_memory(held + work // 2, what)
    except UserError as error:
        raise UserError(f"{error}; a smaller --crop, --size, --tile or --network, or fewer pictures, need less"
                        ) from None
    return f"{what}, at most {config.num_steps} steps, about {memory.in_words(held + work)} of memory"


def short_chunk(config: DipConfig, boxes: list[Box], pictures: int, whole: int) -> int:
    """Steps in one device call: SHORT seconds' worth on a CPU, so that the progress bar moves soon, at most 50. They
    divide `whole` steps if that does not make them fewer than half as many: a last chunk of another length would be
    compiled anew, which can take as long as all others."""
    pixels = pictures * repeats(config) * len(boxes) * boxes[0][2] * boxes[0][3]
    if jax.default_backend() != "cpu":
        return MOST_STEPS
    most = max(1, min(MOST_STEPS, round(SHORT / (STEP_SECONDS.get(config.network, 3e-6) * pixels))))
    even = divisor(whole, most)
    return even if 2 * even >= most else most


class Clock:
    """Says once, after the first chunk that was not compiled, what the rest of a long run will take."""

    def __init__(self, num_steps: int):
        self.num_steps, self.step, self.began = num_steps, 0, None

    def tick(self, step: int) -> str | None:
        """To be called after each chunk; returns a sentence after the second one, if the rest is long."""
        now, told = time.monotonic(), None
        if self.began is not None and self.num_steps:
            pace = (now - self.began) / max(step - self.step, 1)
            rest = pace * (self.num_steps - step)
            told = f"{pace:.3g} s a step: at most {in_time(rest)} more" if rest > LONG else None
            self.num_steps = 0  # told, once
        self.step, self.began = step, now
        return told


def in_time(seconds: float) -> str:
    """A duration for people."""
    return (f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else
            f"{seconds / 3600:.1f} h")


def require_memory_for_fits(count: int, shape: tuple[int, int, int]) -> None:
    """Raises UserError where memory cannot hold so many recommended fits of pictures of this shape at once."""
    height, width, channels = shape
    if count * height * width > HELD_PIXELS:
        fit = recommended_fit(channels, (height, width))
        held, work = fit_bytes(DipConfig(**CROSS_FIT), fit, (height, width), channels, count)
        devices.check_memory(held + work // 2, f"{count} fits of {width}x{height} pixels at once")
