"""Which streams are close to each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def kmeans(x: Tensor, k: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Cluster means (b k c h w) and every particle's cluster (b n) of noisy latents (b n c h w), sample by sample.

    scikit-learn's KMeans (k-means++, 10 starts), as the CoDeX thesis' code, but with a seed per sample.
    """
    from sklearn.cluster import KMeans

    samples = zip(x.flatten(2).nan_to_num().cpu().double().numpy(), seeds, strict=True)
    labels = [KMeans(n_clusters=k, n_init=10, random_state=seed).fit(rows).labels_.tolist() for rows, seed in samples]
    owner = torch.tensor(labels, device=x.device)
    member = F.one_hot(owner, k).to(x.dtype)  # b n k
    weights = member / member.sum(1, keepdim=True)
    return torch.einsum("bnk,bnchw->bkchw", weights, x), owner
