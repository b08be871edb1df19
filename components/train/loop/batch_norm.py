"""Batch normalization of a training in several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...models.timm_models import is_timm

if TYPE_CHECKING:
    import torch


def synchronize_batch_norm(network: torch.nn.Module, backbone: str, device: torch.device) -> str:
    """Let batch normalizations take mean and variance of the images of all processes, as one process does.

    Modules are replaced in the network; parameters, buffers and their names stay. torch's SyncBatchNorm computes on
    GPUs only: elsewhere nothing is changed, each process normalizes by its own share of a batch, and the running
    statistics are those of the main process, which DistributedDataParallel sends to all before each batch.

    Returns a line for the log; empty for a network without batch normalization.
    """
    import torch

    if not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        return ""
    if device.type != "cuda":
        return (
            "batch normalization: each process normalizes by its own share of a batch, since torch synchronizes "
            "processes (SyncBatchNorm) on GPUs only; small shares learn worse, and a larger batch_size helps"
        )
    if is_timm(backbone):  # some of its normalizations include the activation, which torch's function would lose
        from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]

        convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    else:
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return "batch normalization: by the images of all processes (SyncBatchNorm)"
