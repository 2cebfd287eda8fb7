"""Frozen embeddings judged by the simplest that can be trained on them: a linear probe, k-NN, ridge regression."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import lightning
import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mixcontrast.retrieval import search
from mixcontrast.training.callbacks import embed_shared

PROBE_ROWS = 10_000  # of the training part, drawn once: more make a linear probe slow and hardly better
NEIGHBOURS, TEMPERATURE = 20, 0.07

Judge = Callable[[Tensor, Tensor, Tensor, Tensor], dict[str, np.ndarray]]
"""Embeddings and labels to learn from, and to be judged on, to a value a judged row."""


class ProbeCallback(lightning.Callback):
    """Judges the validation part by a probe that learns from the training part, and logs means as `val/<name>`.

    Both parts are embedded as they are judged, nothing drawn, by the module in eval mode. Under several processes each
    embeds its share, the first judges, and all log the same numbers.

    Args:
        data: has `probe_dataloader()`, the training part in order, and `val_dataloader()`.
        judge: to a value a row of the validation part.
        summary: these values and the labels to further numbers, such as R2.
        every_n_epochs: judges in epochs n, 2 n, and so on.
        learns: whether the judge reads the training part; else it is given none of it.
    """

    def __init__(
        self,
        data: lightning.LightningDataModule,
        judge: Judge,
        *,
        summary: Callable[[dict[str, np.ndarray], Tensor], dict[str, float]] | None = None,
        every_n_epochs: int = 1,
        learns: bool = True,
    ) -> None:
        self.learns = learns
        self.data, self.judge, self.summary, self.every_n_epochs = data, judge, summary, every_n_epochs

    def on_train_epoch_end(self, trainer, module) -> None:
        if trainer.fast_dev_run or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        learned = (torch.empty(0), torch.empty(0))
        if self.learns:
            learned = embed_shared(trainer, module, self.data.probe_dataloader())
        judged = embed_shared(trainer, module, self.data.val_dataloader())
        found: dict[str, float] = {}
        if trainer.is_global_zero:
            values = self.judge(*learned, *judged)
            found = {name: float(np.mean(of_rows)) for name, of_rows in values.items() if not name.startswith("_")}
            if self.summary is not None:
                found |= self.summary(values, judged[1])
        for place, (name, value) in enumerate(trainer.strategy.broadcast(found).items()):
            module.log(f"val/{name}", value, prog_bar=place == 0, batch_size=1, sync_dist=True)


def judge_classes(embeddings: Tensor, labels: Tensor, queries: Tensor, of_queries: Tensor) -> dict[str, np.ndarray]:
    """Whether a linear probe and k-NN tell the class of each query: (Q,) of 0 and 1 each.

    The linear probe is a logistic regression on standardised embeddings of at most 10,000 rows; k-NN lets the 20 most
    similar vote, with weights `e^(cosine / 0.07)`. Rows of class -1 are not learned from.

    Source: Wu et al., CVPR 2018, arXiv 1805.01978, of the weighted vote.
    """
    known = labels >= 0
    embeddings, labels = embeddings[known], labels[known]
    found = {}
    rows = _some(len(labels))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough for a comparison
        probe.fit(embeddings[rows].numpy(), labels[rows].numpy())
    found["linear probe"] = (probe.predict(queries.numpy()) == of_queries.numpy()).astype(np.float64)
    near = search(queries, embeddings, min(NEIGHBOURS, len(embeddings)))
    votes = torch.zeros(len(queries), int(labels.max()) + 1)
    weights = torch.exp((torch.as_tensor(near.similarity).float() - 1) / TEMPERATURE)
    votes.scatter_add_(1, labels[torch.as_tensor(near.indices)], weights)
    found["k-NN"] = (votes.argmax(dim=1) == of_queries).numpy().astype(np.float64)
    return found


def judge_values(embeddings: Tensor, values: Tensor, rows: Tensor, of_rows: Tensor) -> dict[str, np.ndarray]:
    """The absolute error of each row (mean over its values) by ridge regression on standardised embeddings.

    The strength is chosen among 1e-3 to 1e3 by leaving one out. `_predicted` holds the predictions.
    """
    probe = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 7)))
    probe.fit(embeddings.double().numpy(), values.double().numpy())
    return errors(torch.as_tensor(probe.predict(rows.double().numpy())), of_rows)


def errors(predicted: Tensor, values: Tensor) -> dict[str, np.ndarray]:
    """The absolute error of each row, and the predictions."""
    off = (predicted.double() - values.double()).abs()
    return {"MAE": (off if off.ndim == 1 else off.mean(dim=1)).numpy(), "_predicted": predicted.numpy()}


def r2(values: dict[str, np.ndarray], of_rows: Tensor) -> dict[str, float]:
    """The share of the variance that the predictions explain, the mean over several values; at most 1."""
    return {"R2": float(r2_score(of_rows.double().numpy(), values["_predicted"]))}


def share_classes(data: lightning.LightningDataModule) -> bool:
    """Whether what is judged has the classes that were trained on, so that a probe can learn them."""
    learned = set(data.train_examples.names)
    return bool(learned) and set(data.test_examples.names) <= learned and set(data.validation_examples.names) <= learned


def _some(rows: int) -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(rows)[:PROBE_ROWS])
