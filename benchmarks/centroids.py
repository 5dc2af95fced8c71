"""centroid_hinge with gradient beside PyTorch: a loop over classes, and the one-hot form.

    python benchmarks/centroids.py [--shape B N D K] [--threads 1] [--seconds 2]

Both are forum answers made right: the loop is that of the question, over the classes of every item;
the one-hot form takes class sums by a matrix product, masks what is absent, and brings centroids
back to their rows by another.  Values and gradients of all are compared first.
"""

from __future__ import annotations

import argparse
import os


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=4, default=[32, 1000, 50, 25])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(args.threads)

    import numpy as np
    import torch
    from clock import medians

    import fastgrad as fg

    fg.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    items, rows, columns, classes = args.shape
    rng = np.random.default_rng(0)
    X = rng.normal(size=(items, rows, columns)).astype(np.float32)
    y = rng.integers(0, classes, (items, rows))
    margin = float(np.sqrt(columns)) * 0.9  # about half the rows lie beyond it
    x, labels = torch.from_numpy(X).requires_grad_(), torch.from_numpy(y)
    out = np.empty_like(X)

    def hinge(distances: torch.Tensor) -> torch.Tensor:
        return torch.clamp(distances - margin, min=0.0) ** 2

    def loop() -> tuple[float, torch.Tensor]:
        losses = []
        for data, ids in zip(x, labels, strict=True):
            of_classes = []
            for k in torch.unique(ids):
                subset = data[ids == k]
                distances = torch.linalg.norm(subset - subset.mean(dim=0), dim=1)
                of_classes.append(hinge(distances).mean())
            losses.append(torch.stack(of_classes).mean())
        loss = torch.stack(losses).mean()
        return loss.item(), torch.autograd.grad(loss, x)[0]

    def one_hot() -> tuple[float, torch.Tensor]:
        table = torch.nn.functional.one_hot(labels, classes).to(x.dtype)
        counts = table.sum(dim=1)
        shares = table / counts.clamp(min=1)[:, None]
        centroids = shares.transpose(1, 2) @ x
        distances = torch.linalg.norm(x - table @ centroids, dim=2)
        of_classes = (shares * hinge(distances)[..., None]).sum(dim=1)
        loss = (of_classes.sum(dim=1) / (counts > 0).sum(dim=1)).mean()
        return loss.item(), torch.autograd.grad(loss, x)[0]

    def fastgrad() -> tuple[float, np.ndarray]:
        return fg.centroid_hinge.value_and_grad(X, y, margin=margin, out=out)

    def allocating() -> tuple[float, np.ndarray]:
        return fg.centroid_hinge.value_and_grad(X, y, margin=margin)

    contestants = {
        "fastgrad, out=": fastgrad,
        "fastgrad": allocating,
        "torch loop": loop,
        "torch one-hot": one_hot,
    }
    value, grad = fastgrad()
    for name, f in contestants.items():
        other, slope = f()
        # Sums of 1e3 float32 numbers in other orders: far below 1e-4, far above any mistake.
        assert abs(other - value) <= 1e-4 * value, (name, other, value)
        assert np.abs(np.asarray(slope) - grad).max() <= 1e-4 * np.abs(grad).max(), name
    ours = "fastgrad, out="
    times = {}
    for name, f in contestants.items():  # each against ours, so that none is dropped from the race
        if name != ours:
            pair = medians({ours: contestants[ours], name: f}, args.seconds)
            times[name] = pair
    print(f"(B, N, d, K) = {tuple(args.shape)}, float32, {args.threads} thread(s)")
    print(f"{'':<16}{'median ms':>11}{'ours':>9}{'ratio':>9}")
    for name, pair in times.items():
        print(
            f"{name:<16}{1e3 * pair[name]:>11.2f}{1e3 * pair[ours]:>9.2f}"
            f"{pair[name] / pair[ours]:>8.1f}x"
        )


if __name__ == "__main__":
    main()
