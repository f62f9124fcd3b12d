"""A family of one's own, as the README shows it: small networks for regression."""

import numpy as np
import torch
from sklearn.metrics import r2_score
from torch import nn

import mapmerge_core as mm

R2 = mm.Metric("R²", maximize=True, high=1.0)


class Regression(mm.Family):
    """Networks of two layers, measured on val_x, val_y, test_x and test_y of an .npz file."""

    metrics = (mm.LOSS, R2)

    def __init__(self, architecture, pretrained):
        n_in, width, n_out = map(int, architecture.split("-"))  # such as "8-32-1"
        self.model = nn.Sequential(nn.Linear(n_in, width), nn.ReLU(), nn.Linear(width, n_out)).eval()
        self.arrays = {}

    def model_in(self, dtype):
        return self.model  # merges are written into it; float32 is fast enough for all

    def prepare(self, task, split):
        if (task.name, split) not in self.arrays:
            with np.load(task.source.path) as file:
                x, y = file[f"{split}_x"], file[f"{split}_y"]
            self.arrays[task.name, split] = torch.from_numpy(x).to(self.device), y

    @torch.inference_mode()
    def measure(self, task, split, dtype, batch_size):
        x, y = self.arrays[task.name, split]
        predicted = torch.cat([self.model(batch)[:, 0] for batch in x.split(batch_size)]).cpu().numpy()
        errors = (predicted - y) ** 2
        values = {mm.LOSS: errors.mean(), R2: r2_score(y, predicted)}
        return {metric: mm.Score(value, per_example=errors) for metric, value in values.items()}
