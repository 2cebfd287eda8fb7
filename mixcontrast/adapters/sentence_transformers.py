"""Our losses, mixers and evaluator in sentence-transformers' trainer.

Before::

    loss = MultipleNegativesRankingLoss(model, scale=20.0)

After::

    criterion = MoCHi(SupConLoss(temperature=1 / 20), num_hardest=16, num_pair_mixes=32, num_anchor_mixes=8)
    loss = RankingLoss(model, criterion)

The data, the trainer and the arguments stay as they are. MatryoshkaLoss wraps it as it wraps the plain one, and
CachedRankingLoss takes the place of CachedMultipleNegativesRankingLoss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixcontrast.checks import check_embeddings
from mixcontrast.losses.base import Loss
from mixcontrast.losses.softmax import RankNContrastLoss
from mixcontrast.mixers.base import Mixer, innermost
from mixcontrast.mixers.supremix import SupReMix
from mixcontrast.pairs import Block, Pairs
from mixcontrast.retrieval import RetrievalEvaluator
from mixcontrast.similarity import similarity_table, unit

try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.evaluation import BaseEvaluator
    from sentence_transformers.base.losses.gradcache import CachedLossMixin
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"This adapter needs sentence-transformers of 6.2 or newer: {error}; "
        "pip install 'mixcontrast[sentence-transformers]'"
    ) from None

Features = dict[str, Tensor]


class RankingLoss(nn.Module):
    """Each query against every document of the batch, with any of our losses and mixers.

    The columns of the data are (query, document) or (query, document, hard negative 1, ..., hard negative n). Each
    query's own document is its positive; all other documents of the batch, everybody's hard negatives among them, are
    its negatives, and all of them are there to be mixed. `RankingLoss(model, SupConLoss(temperature=1 / scale))` is
    `MultipleNegativesRankingLoss(model, scale)`, value and gradient.

    Args:
        model: whose "sentence_embedding" is compared, by cosine.
        criterion: a loss that compares among candidates (SupConLoss, InfoNCE, MultiSimilarityLoss, ContrastiveLoss,
            TripletLoss, ...), or MoCHi or Metrix around one.

    Raises:
        TypeError: `criterion` is none of ours, or reads more than the table of queries and documents (proxies, a
            queue, a logit_scale, real values).
        ValueError: when called: fewer than two columns, a batch without a negative.

    Use `BatchSamplers.NO_DUPLICATES`, as with theirs: a document that occurs twice is a negative of its own query.
    """

    def __init__(self, model: SentenceTransformer, criterion: Loss | Mixer) -> None:
        super().__init__()
        _check_criterion(criterion)
        self.model, self.criterion = model, criterion

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch as the trainer gives it; `labels` are not read."""
        embeddings = [self.model(features)["sentence_embedding"] for features in sentence_features]
        return self.compute_loss_from_embeddings(embeddings, labels)

    def compute_loss_from_embeddings(self, embeddings: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """The loss of (B, D) embeddings of each column; a 0-dimensional tensor."""
        return self.criterion.reduce_tables((ranking_table(embeddings),))

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of this loss."""
        return {"criterion": repr(self.criterion)}


class CachedRankingLoss(CachedLossMixin, nn.Module):
    """RankingLoss of a large batch in the memory of a small one (GradCache), as CachedMultipleNegativesRankingLoss.

    Value and gradients are RankingLoss's, mixtures are drawn once a batch. The similarities of the whole batch, and
    what the mixer adds, are held at once; what is embedded in small batches is the text.

    Args:
        model: as in RankingLoss.
        criterion: as in RankingLoss.
        mini_batch_size: how many texts are embedded at once.
        mini_batch_num_tokens: or how many tokens, as in theirs.
        show_progress_bar: over the small batches.

    Raises:
        TypeError: as RankingLoss.
        ValueError: as RankingLoss; `mini_batch_size` below 1.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        criterion: Loss | Mixer,
        *,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__()
        _check_criterion(criterion)
        if mini_batch_size < 1:
            raise ValueError(f"`mini_batch_size` must be at least 1. Got {mini_batch_size}; 32 is common.")
        self.model, self.criterion = model, criterion
        self.mini_batch_size, self.mini_batch_num_tokens = mini_batch_size, mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of all small batches, for GradCache: `reps` hold, column by column, their embeddings."""
        loss = self.criterion.reduce_tables((ranking_table([torch.cat(parts) for parts in reps]),))
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch as the trainer gives it; `labels` are not read."""
        return self.forward_cached(sentence_features, labels)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of this loss."""
        return {"criterion": repr(self.criterion), "mini_batch_size": self.mini_batch_size}


class LabelLoss(nn.Module):
    """One column of texts with a label each, with any of our losses and mixers that are called `(embeddings, labels)`.

    In place of BatchAllTripletLoss and its kin: `LabelLoss(model, Metrix(MultiSimilarityLoss()))`. Labels that are
    real values go to `SupReMix(SupConLoss())` or `RankNContrastLoss()`. The trainer gives the parameters of a proxy
    loss to the optimizer.

    Args:
        model: whose "sentence_embedding" is compared.
        criterion: a loss or mixer of ours.

    Raises:
        TypeError: `criterion` is none of ours; when called, labels that are not what it reads.
        ValueError: when called: more columns than one.
    """

    def __init__(self, model: SentenceTransformer, criterion: Loss | Mixer) -> None:
        super().__init__()
        _check_ours("LabelLoss", criterion)
        self.model, self.criterion = model, criterion

    def forward(self, sentence_features: Iterable[Features], labels: Tensor) -> Tensor:
        """The loss of a batch as the trainer gives it."""
        columns = list(sentence_features)
        if len(columns) != 1:
            raise ValueError(f"LabelLoss reads one column of texts. Got {len(columns)}; use RankingLoss for several.")
        return self.criterion(self.model(columns[0])["sentence_embedding"], labels)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of this loss."""
        return {"criterion": repr(self.criterion)}


class SentenceRetrievalEvaluator(BaseEvaluator):
    """Our RetrievalEvaluator as one of its evaluators, for `SentenceTransformerTrainer(evaluator=...)`.

    Before::

        evaluator = InformationRetrievalEvaluator(queries, corpus, relevant_docs, name="dev")

    After::

        evaluator = SentenceRetrievalEvaluator(queries, query_labels, corpus, corpus_labels, name="dev")
        evaluator(model)["dev_Recall@1"], evaluator(model)["dev_Recall@1 low"]

    Args:
        queries: Q texts.
        labels: (Q,) integers: a document of the query's label is relevant to it.
        corpus: G texts; None: the queries are searched among themselves, each without itself.
        corpus_labels: (G,) integers.
        evaluator: which metrics, at which cut-offs; it keeps the last `Evaluation`, a value a query, as `last`.
        primary: the metric that chooses the best checkpoint, under the evaluator's names.
        name: before each metric's name, as in theirs.
        batch_size: how many texts are embedded at once.

    Raises:
        ValueError: when called, as `mixcontrast.retrieval.evaluate`; a `primary` that the evaluator does not give.
    """

    def __init__(
        self,
        queries: Sequence[str],
        labels: Any,
        corpus: Sequence[str] | None = None,
        corpus_labels: Any = None,
        *,
        evaluator: RetrievalEvaluator | None = None,
        primary: str = "Recall@1",
        name: str = "",
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        self.queries, self.labels = list(queries), labels
        self.corpus, self.corpus_labels = None if corpus is None else list(corpus), corpus_labels
        self.evaluator = RetrievalEvaluator(ks=(1, 5, 10)) if evaluator is None else evaluator
        self.name, self.batch_size = name, batch_size
        self.primary, self.primary_metric = primary, f"{name}_{primary}" if name else primary

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """The metrics of a model, and its model card's; `output_path` is not written to."""
        embed = {"batch_size": self.batch_size, "show_progress_bar": False, "convert_to_numpy": True}
        queries = model.encode_query(self.queries, **embed)
        corpus = None if self.corpus is None else model.encode_document(self.corpus, **embed)
        numbers = self.evaluator(queries, self.labels, corpus, self.corpus_labels)
        if self.primary not in numbers:
            raise ValueError(
                f"`primary` must be a metric of the evaluator. Got {self.primary!r}; it gives {', '.join(numbers)}."
            )
        metrics = self.prefix_name_to_metrics(numbers, self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics


def ranking_table(embeddings: Sequence[Tensor]) -> Pairs:
    """Queries against the documents of the batch, those of the first column before those of the next.

    Args:
        embeddings: (B, D) of the queries, (B, D) of their documents, then (B, D) of each column of hard negatives.

    Raises:
        ValueError: fewer than two columns, shapes that differ, a batch without a negative; on a CPU also NaN or zero.
    """
    if len(embeddings) < 2:
        raise ValueError(
            f"RankingLoss needs a column of queries and one of documents. Got {len(embeddings)} column; "
            "for texts with labels use LabelLoss."
        )
    if len({tuple(column.shape) for column in embeddings}) > 1:
        raise ValueError(
            "Every column must have an embedding a query, all of one width. "
            f"Got {[tuple(column.shape) for column in embeddings]}; give each query as many texts."
        )
    check_embeddings("queries", embeddings[0])
    documents = torch.cat(list(embeddings[1:]))
    check_embeddings("documents", documents)
    if len(documents) < 2:
        raise ValueError("A ranking needs two documents, else there are no negatives. Got 1; use a larger batch.")
    anchors = unit(embeddings[0])
    candidates = unit(documents).to(anchors.dtype)
    target = torch.eye(len(anchors), len(candidates), dtype=torch.bool, device=anchors.device)
    return Pairs(anchors, (Block(similarity_table(anchors, candidates), target, 1.0, candidates),))


def _check_ours(name: str, criterion: Any) -> None:
    if not isinstance(criterion, Loss | Mixer):
        raise TypeError(
            f"{name} takes a mixcontrast loss or mixer. Got {type(criterion).__name__}; "
            "RankingLoss(model, SupConLoss(temperature=1 / 20)) is MultipleNegativesRankingLoss(model, scale=20)."
        )


def _check_criterion(criterion: Any) -> None:
    _check_ours("RankingLoss", criterion)
    bottom = innermost(criterion)
    reads_more = bottom.towers or isinstance(bottom, RankNContrastLoss) or any(True for _ in bottom.parameters())
    stack = criterion
    while isinstance(stack, Mixer):
        reads_more = reads_more or isinstance(stack, SupReMix)
        stack = stack.loss
    if reads_more or any(True for _ in criterion.buffers()):
        raise TypeError(
            "RankingLoss compares queries with the documents of the batch. "
            f"Got {type(criterion).__name__} on {type(bottom).__name__}, which reads more (proxies, a queue, a "
            "logit_scale or real values); use SupConLoss, or for labels LabelLoss."
        )
