"""Show what decided the surest mistakes of the test split, by Grad-CAM.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017: the
channels of the last feature map, weighted by the mean gradient of the predicted class's logit, summed, clipped at 0.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataset.manifest import File
from ..dataset.shards import Layout, ShardWriter
from ..imaging.decoder import Pixels
from ..imaging.tensors import center_crop
from ..storage.errors import first_line
from .inference import InferenceRunner, InputBatch

if TYPE_CHECKING:
    import torch

ROLE = "grad_cam"
"""The role of the file of overlays in an evaluation."""
MISTAKES, SIDE = 12, 128
"""Overlays, and pixels of an overlay's side, at most."""
SCHEMA = pa.schema([("image_id", pa.string()), ("predicted_id", pa.int32()), ("overlay", pa.binary())])
_QUALITY = 82


class NoFeatureMap(Exception):
    """A network without a feature map before its head, such as a vision transformer; the message says why."""


@dataclass
class MostConfidentMistakes:
    """The `limit` wrong predictions of highest confidence, each (its row, its image uint8 [side, side, C]).

    Images with several labels are left out: none of their classes is the one that was predicted.
    """

    side: int
    limit: int = MISTAKES
    mistakes: list[tuple[Mapping[str, Any], Pixels]] = field(default_factory=list)

    def add(self, rows: Sequence[Mapping[str, Any]], batch: InputBatch) -> None:
        """Add predictions with `label_id`, `predicted_id` and `confidence`, row by row of the batch."""
        pairs = zip(rows, batch.images, strict=True)
        wrong = [(row, image) for row, image in pairs if row.get("label_id") not in (None, row.get("predicted_id"))]
        surest = heapq.nsmallest(
            self.limit, [*self.mistakes, *wrong], key=lambda pair: (-pair[0]["confidence"], pair[0]["image_id"])
        )
        # Copies: a view would keep its batch in memory.
        self.mistakes = [(row, np.array(center_crop(image[None], self.side)[0])) for row, image in surest]


def write_overlays(
    mistakes: MostConfidentMistakes, runner: InferenceRunner, predicted_ids: Sequence[int], uri: str
) -> tuple[File | None, str]:
    """Write the overlays below the evaluation's `uri`; return their file, None without one, and the reason for that.

    `predicted_ids`: of each of the network's classes, as mistakes have them; of several with one id the first counts.
    """
    if not mistakes.mistakes:
        return None, ""
    import torch

    try:
        with ShardWriter(uri, Layout(SCHEMA, row_group_rows=100)) as writer:
            for row, image in mistakes.mistakes:
                inputs = runner.normalize(torch.from_numpy(image[None]).to(runner.device))
                target = torch.tensor([predicted_ids.index(row["predicted_id"])])
                overlay = draw_overlay(image, compute_grad_cam(runner.network, inputs, target)[0])
                writer.add({name: row[name] for name in ("image_id", "predicted_id")} | {"overlay": overlay}, 0)
            return writer.publish(ROLE, ROLE, "test"), ""
    except (NoFeatureMap, RuntimeError) as error:  # RuntimeError: a network that autograd can't follow, or memory
        return None, first_line(error)


def compute_grad_cam(network: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return float32 [B, H, W] in [0, 1], where 1 is what speaks most for the target class in each image.

    `network` is in evaluation mode; `inputs` float [B, C, H, W], normalized; `targets` int64 [B], class ids of the
    network. All is 0 in an image in which nothing speaks for its class. Raises NoFeatureMap.
    """
    import torch
    from torch.nn import functional

    outputs: list[torch.Tensor] = []

    def keep_output(module: torch.nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            return output
        outputs.append(output if output.requires_grad else output.requires_grad_())
        return output.clone()  # what follows may change it in place, as DenseNet's ReLU does

    handles = [module.register_forward_hook(keep_output) for module in network.modules() if module is not network]
    try:
        with torch.enable_grad():
            logits = network(inputs).float()
            score = logits.gather(1, targets.to(logits.device)[:, None]).sum()
            has_channels_last = getattr(network, "output_fmt", None) == "NHWC"  # timm's Swin
            feature_map = find_feature_map(outputs, has_channels_last)
            (gradient,) = torch.autograd.grad(score, [feature_map])
    finally:
        for handle in handles:
            handle.remove()
    feature_map, gradient = feature_map.detach().float(), gradient.float()
    if has_channels_last:
        feature_map, gradient = feature_map.permute(0, 3, 1, 2), gradient.permute(0, 3, 1, 2)
    heat = (gradient.mean((2, 3), keepdim=True) * feature_map).sum(1, keepdim=True).relu()
    heat = functional.interpolate(heat, size=inputs.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    heat = heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12)
    values: npt.NDArray[np.float32] = heat.cpu().numpy()
    return values


def find_feature_map(outputs: Sequence[torch.Tensor], has_channels_last: bool) -> torch.Tensor:
    """Return the last feature map, [B, C, H, W] with more than one place, of modules' outputs in their order.

    Raises NoFeatureMap for networks that go on with tokens, [B, T, C]: a map of them is not what decides.
    """
    height = 1 if has_channels_last else 2
    for output in reversed(outputs):
        shape = output.shape
        if len(shape) == 3 and shape[1] > 1:
            raise NoFeatureMap("a transformer's tokens are no feature map")
        if len(shape) == 4 and shape[height] * shape[height + 1] > 1:
            return output
    raise NoFeatureMap("the network has no feature map of more than one place")


def draw_overlay(image: Pixels, heat: npt.NDArray[np.float32]) -> bytes:
    """Return a JPEG of the image uint8 [H, W, C] in gray, tinted where `heat` float32 [H, W] in [0, 1] is high."""
    gray = image.mean(2, dtype=np.float32)[..., None]
    colors = cv2.applyColorMap(np.round(255 * heat).astype(np.uint8), cv2.COLORMAP_TURBO).astype(np.float32)
    weight = 0.6 * heat[..., None]
    picture = np.clip((1 - weight) * gray + weight * colors, 0, 255).astype(np.uint8)
    if max(picture.shape) > SIDE:
        picture = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
    return bytes(data.tobytes())
