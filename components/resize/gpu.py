"""Decode and resample very large JPEGs on a GPU (nvJPEG, through torchvision), in actors of Ray with a share each.

The kernel takes any torch device; the tests compare the device `cpu` with the CPU's kernel. An image is decoded at its
full size and resampled in float32, so some pixels differ from the CPU kernel's by a level of 255. Everything but plain
JPEGs, in gray or YCbCr, goes through the CPU's kernel; the choice depends on an image's bytes alone.

Actors and not tasks: Ray starts a fresh process for every task that has a GPU, and CUDA takes seconds to start.
"""

from __future__ import annotations

import io
import platform
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from PIL import Image

from ..engine.ray_session import RaySession, UnreadableWorkspace, can_read
from ..engine.tasks import TASKS_PER_WORKER, Failure, Result, TaskFunction, run_work
from ..imaging.decoder import Pixels
from ..imaging.geometry import MAX_ASPECT_RATIO, Geometry, center_square, decode_and_resize, finish_tensor
from ..imaging.headers import sniff
from ..imaging.pillow_decoder import ORIENTATION_TAG
from ..imaging.pixel_options import COLORS
from ..storage.errors import MillError, TransientError
from .tensor_part import Kernel, ResizeTask

if TYPE_CHECKING:
    import torch

INTERPOLATIONS = ("bilinear", "bicubic")
"""Modes that torch resamples with antialiasing on every device."""
BATCH_PIXELS = 128 * 10**6
"""Pixels that are decoded at a time: 384 MB of uint8. One image may exceed it alone."""
BATCH_IMAGES = 64
_FLIPPED_AXES = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""EXIF 2.32, 4.6.4.A: the axes of [C, H, W] to flip, from orientation 5 on after height and width are exchanged."""


class JpegInfo(NamedTuple):
    """Header of a JPEG that the GPU may decode: its sides as stored, whether it is gray, and its EXIF orientation."""

    width: int
    height: int
    gray: bool
    orientation: int


def make_kernel(device: str) -> Kernel:
    """Return the kernel for a torch device: `cuda`, or `cpu` for tests."""

    def kernel(images: Sequence[bytes], geometry: Geometry) -> Iterator[Pixels]:
        headers = [parse_header(data) for data in images]
        for begin, end in split_batches(headers):
            pictures = _decode_batch(images[begin:end], headers[begin:end], geometry, device)
            for data, header, picture in zip(images[begin:end], headers[begin:end], pictures, strict=True):
                if header is None or picture is None:
                    yield decode_and_resize(data, geometry)
                else:
                    yield finish_tensor(resample(_apply_orientation(picture, header.orientation), geometry), geometry)

    return kernel


def parse_header(data: bytes) -> JpegInfo | None:
    """Parse the header of a plain JPEG, gray or YCbCr in 8 bits; None for anything else."""
    if sniff(data) != "JPEG":
        return None
    try:
        opened = Image.open(io.BytesIO(data), formats=["JPEG"])
        orientation = opened.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # Pillow raises many types for a damaged file; the CPU's kernel decides
        return None
    if opened.format != "JPEG" or opened.mode not in ("L", "RGB"):  # several pictures in one file, CMYK
        return None
    if opened.mode == "RGB" and not _is_ycbcr(opened):
        return None
    if max(opened.size) > MAX_ASPECT_RATIO * min(opened.size):
        return None
    is_valid = isinstance(orientation, int) and 1 <= orientation <= 8
    return JpegInfo(*opened.size, opened.mode == "L", orientation if is_valid else 1)


def _is_ycbcr(opened: Image.Image) -> bool:
    """Return whether a JPEG of three components is YCbCr and not RGB, by Adobe's marker and the components' names.

    nvJPEG looks at neither.
    """
    transform = opened.info.get("adobe_transform", 1 if "adobe" not in opened.info else 0)
    names = tuple(component[0] for component in getattr(opened, "layer", ()))
    return transform == 1 and names == (1, 2, 3)


def split_batches(headers: Sequence[JpegInfo | None]) -> Iterator[tuple[int, int]]:
    """Yield [begin, end) of the images to decode together, at most `BATCH_PIXELS` and `BATCH_IMAGES`."""
    begin = pixels = 0
    for number, header in enumerate(headers):
        size = header.width * header.height if header else 0
        if number > begin and (pixels + size > BATCH_PIXELS or number - begin >= BATCH_IMAGES):
            yield begin, number
            begin, pixels = number, 0
        pixels += size
    if begin < len(headers):
        yield begin, len(headers)


def _decode_batch(
    images: Sequence[bytes], headers: Sequence[JpegInfo | None], geometry: Geometry, device: str
) -> list[torch.Tensor | None]:
    """Return uint8 [C, H, W] of each image as stored, on the device; None for those that it does not decode."""
    from torchvision.io import ImageReadMode

    pictures: list[torch.Tensor | None] = [None] * len(images)
    for gray in (False, True):
        chosen = [n for n, header in enumerate(headers) if header and _decodes_to_gray(header, geometry.color) == gray]
        mode = ImageReadMode.GRAY if gray else ImageReadMode.RGB
        for n, picture in zip(chosen, _decode_jpegs([images[n] for n in chosen], mode, device), strict=True):
            header = headers[n]
            if header and picture is not None and picture.shape[1:] == (header.height, header.width):
                pictures[n] = picture
    return pictures


def _decodes_to_gray(header: JpegInfo, color: str) -> bool:
    """Return whether one channel is decoded; of a gray image it stands for red, green or blue as well."""
    return color == "gray" or (header.gray and COLORS[color] == 1)


def _decode_jpegs(images: list[bytes], mode: object, device: str) -> list[torch.Tensor | None]:
    """Decode together, or one by one if that fails; None for an image that fails alone."""
    import torch
    from torchvision.io import decode_jpeg

    if not images:
        return []
    tensors = [torch.from_numpy(np.frombuffer(data, np.uint8).copy()) for data in images]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's decoders will move to another package
            return list(decode_jpeg(tensors, mode, device))
    except torch.OutOfMemoryError as error:
        raise _out_of_memory_error(error) from None
    except RuntimeError:
        _check_device(device)
        if len(images) == 1:
            return [None]
        return [picture for data in images for picture in _decode_jpegs([data], mode, device)]


def _check_device(device: str) -> None:
    """Raise TransientError if the GPU fails at a trivial operation too: then the image was not the cause."""
    import torch

    try:
        torch.ones(1, device=device).add_(1).cpu()
    except RuntimeError as error:
        raise TransientError(f"device: the GPU no longer works: {str(error).splitlines()[0]}") from None


def _out_of_memory_error(error: BaseException) -> TransientError:
    return TransientError(
        f"device: expected enough memory on the GPU, found too little ({str(error).splitlines()[0]}); give each worker "
        "more of it (--gpu-share), or resize on the CPU (--device cpu)"
    )


def _apply_orientation(picture: torch.Tensor, orientation: int) -> torch.Tensor:
    """Rotate and flip [C, H, W] by its EXIF orientation."""
    if orientation >= 5:
        picture = picture.transpose(1, 2)
    return picture.flip(_FLIPPED_AXES[orientation]) if orientation in _FLIPPED_AXES else picture


def resample(picture: torch.Tensor, geometry: Geometry) -> Pixels:
    """Resample in float32, antialiased, and crop: uint8 [C, H, W] → uint8 [h, w, C] in main memory, not yet padded."""
    import torch
    from torch.nn.functional import interpolate

    width, height = geometry.scaled(picture.shape[2], picture.shape[1])
    if picture.shape[1:] != (height, width):
        try:
            resized = interpolate(
                picture[None].to(torch.float32).contiguous(), (height, width), mode=geometry.interpolation,
                antialias=True, align_corners=False,
            )  # fmt: skip
        except torch.OutOfMemoryError as error:
            raise _out_of_memory_error(error) from None
        picture = resized[0].round_().clamp_(0, 255).to(torch.uint8)
    if geometry.mode == "crop":
        top, left, size = center_square(width, height, geometry)
        picture = picture[:, top : top + size, left : left + size]
    pixels: Pixels = picture.permute(1, 2, 0).contiguous().cpu().numpy()
    return pixels


ACTOR_RESTARTS = -1
"""Unlimited: lost tasks are counted, and that ends it."""
ACTOR_TASK_RETRIES = 1
"""By Ray: without any, a call to an actor that is being restarted would fail at once."""


class GpuActor:
    """One process with a share of a GPU. `device` is a torch device."""

    def __init__(self, device: str) -> None:
        self.device, self.kernel = device, make_kernel(device)

    def run(
        self, work: TaskFunction, probe_file: str, task: ResizeTask, arguments: tuple[Any, ...]
    ) -> Result | Failure | UnreadableWorkspace:
        """Return `work(task, *arguments, kernel)`; the CPU decodes images that the GPU can't decode."""
        import torch

        if not can_read(probe_file):
            return UnreadableWorkspace(platform.node())
        if self.device != "cpu" and not torch.cuda.is_available():
            message = f"device: expected the GPU that Ray gave to node {platform.node()}, found none that torch can use"
            return Failure(message, MillError.exit_code)
        return run_work(work, task, (*arguments, self.kernel))


def count_actors(gpus: float, cores: int, share: float) -> int:
    """Return the number of actors that fit: whole shares of each GPU, and a core for each."""
    return max(1, min(int(gpus) * int(1 / share + 1e-9), cores))


class GpuActors:
    """An executor of actors with `share` of a GPU each, on all GPUs of a Ray session; they are killed at exit."""

    def __init__(self, session: RaySession, share: float, device: str) -> None:
        import ray

        gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
        actor_class: Any = ray.remote(
            num_cpus=1, num_gpus=share, max_restarts=ACTOR_RESTARTS, max_task_retries=ACTOR_TASK_RETRIES
        )(GpuActor)
        self.step, self._session = session.step, session
        self._actors = [actor_class.remote(device) for _ in range(count_actors(gpus, session.get_cores(), share))]
        self._running: dict[Any, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)

    def count_slots(self) -> int:
        return TASKS_PER_WORKER * len(self._actors)

    def submit(self, work: TaskFunction, task: Any, arguments: tuple[Any, ...]) -> Any:
        busy = list(self._running.values())
        number = min(range(len(self._actors)), key=busy.count)
        handle = self._actors[number].run.remote(work, self._session.probe_file, task, arguments)
        self._running[handle] = number
        return handle

    def wait(self, handles: Sequence[Any]) -> Sequence[Any]:
        self._session.get_cores()
        return self._session.wait(handles)

    def get_result(self, handle: Any) -> Result:
        del self._running[handle]
        return self._session.get_result(handle)
