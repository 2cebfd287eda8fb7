"""A feature matrix in scikit-learn: neighbours in the raw features, after PCA, and after a map learned by contrast.

    python eval/adapters_scikit_learn.py           # writes eval/adapters_scikit_learn.md
    python eval/adapters_scikit_learn.py 1         # repetitions: prints only

Needs `pip install '.[test]'`. About fifteen minutes on one core. Nothing was tuned: all have their defaults, but
the number of neighbours, which is 5 everywhere.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from paired import changes, means, ran_on
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import KFold
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mixcontrast import MultiSimilarityLoss, SupConLoss, SupReMix
from mixcontrast.adapters.sklearn import ContrastiveTransformer
from mixcontrast.data import Table
from mixcontrast.files import write_whole

FOLDS = 5


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    digits, concrete = load_digits(), Table(source="modeldata/concrete", target="compressive_strength")
    strengths = np.asarray(concrete.labels, np.float64)
    tasks = {
        "## Digits: 1,797 images of 8 x 8, ten classes; the share told right": (
            digits.data,
            digits.target,
            {
                "neighbours": make_pipeline(StandardScaler(), KNeighborsClassifier(5)),
                "PCA, neighbours": make_pipeline(StandardScaler(), PCA(32), KNeighborsClassifier(5)),
                "plain loss, neighbours": _learned(KNeighborsClassifier(5), MultiSimilarityLoss()),
                "default, neighbours": _learned(KNeighborsClassifier(5), None),
            },
            [("default, neighbours", "PCA, neighbours"), ("default, neighbours", "plain loss, neighbours")],
            "accuracy",
        ),
        "## Concrete: 1,030 mixes of 8 numbers, their strength in MPa; the absolute error, lower is better": (
            np.stack([np.asarray(concrete[row]) for row in range(len(concrete))]).astype(np.float64),
            strengths,
            {
                "neighbours": make_pipeline(StandardScaler(), KNeighborsRegressor(5)),
                "default, neighbours": _learned(KNeighborsRegressor(5), None),
                "hidden layer, neighbours": _learned(KNeighborsRegressor(5), None, hidden=64),
                "hidden layer, SupReMix, neighbours": _learned(
                    KNeighborsRegressor(5), SupReMix(SupConLoss(temperature=0.1), window=5.0), hidden=64
                ),
            },
            [
                ("default, neighbours", "neighbours"),
                ("hidden layer, neighbours", "neighbours"),
                ("hidden layer, SupReMix, neighbours", "hidden layer, neighbours"),
            ],
            "MAE",
        ),
    }
    parts = []
    for title, (features, wanted, models, pairs, metric) in tasks.items():
        found, seconds = cross_validated(models, features, wanted, repetitions, metric)
        tables = means(found, {metric: metric}, None, seconds), changes(found, pairs, {metric: metric}, None)
        parts.append("\n\n".join([title, *tables]))
    text = (
        "# In scikit-learn: neighbours after a learned map\n\n"
        "Made by `python eval/adapters_scikit_learn.py`.\n\n"
        f"Each row is judged by a model that was fitted without its fold, of {FOLDS}; mean of {repetitions} divisions "
        "into folds, the same for all; 95% intervals over rows. Seconds are of a division, all folds fitted and "
        "judged. The learned maps are `ContrastiveTransformer(32)` with its default criterion, or with another where "
        "said.\n\n" + "\n\n".join(parts) + f"\n\n{ran_on('scikit-learn')}\n"
    )
    print(text)
    if len(sys.argv) == 1:
        write_whole(Path(__file__).with_suffix(".md"), lambda path: path.write_text(text, encoding="utf-8"))


def _learned(neighbours: object, criterion: object, hidden: int | None = None) -> object:
    return make_pipeline(ContrastiveTransformer(32, criterion=criterion, hidden=hidden, random_state=0), neighbours)


def cross_validated(
    models: dict, features: np.ndarray, wanted: np.ndarray, repetitions: int, metric: str
) -> tuple[dict[str, list[dict[str, np.ndarray]]], dict[str, float]]:
    """Model to, for each division into folds, a value a row; and what a division takes."""
    found, seconds = {}, {}
    for name, model in models.items():
        took = []
        for repetition in range(repetitions):
            began, told = time.perf_counter(), np.empty(len(wanted))
            for fit, judge in KFold(FOLDS, shuffle=True, random_state=repetition).split(features):
                told[judge] = clone(model).fit(features[fit], wanted[fit]).predict(features[judge])
            took.append(time.perf_counter() - began)
            values = np.abs(told - wanted) if metric == "MAE" else (told == wanted).astype(np.float64)
            found.setdefault(name, []).append({metric: values})
        seconds[name] = float(np.median(took))
        print(f"{name}: {np.mean([one[metric].mean() for one in found[name]]):.4f}, {seconds[name]:.1f} s", flush=True)
    return found, seconds


if __name__ == "__main__":
    main()
