"""The sphere around an anchor: angles are true, and the tables say what the picture shows."""

from __future__ import annotations

import csv

import pytest
import torch
from torch import nn

from mixcontrast import ClipLoss, GeodesicMixup, InfoNCE, Metrix, MoCHi, MultiSimilarityLoss, SupConLoss, SynCo
from mixcontrast.explanation import explain
from mixcontrast.explanation.sphere import most_moved, view_from, views_of
from mixcontrast.report.explained import kinds_table, mixtures_table, write_csv, write_picture
from mixcontrast.report.figures import printable

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
CRITERIA = {
    "metrix": Metrix(MultiSimilarityLoss(), num_mixtures=5),
    "mochi": MoCHi(SupConLoss(), num_hardest=4, num_pair_mixes=5, num_anchor_mixes=3),
    "synco": SynCo(SupConLoss(), num_hardest=4, num_interpolated=2, num_extrapolated=2, num_pairs=2, num_noised=2,
                   num_gradient=1, num_sign=1),
}  # fmt: skip


def explained(name: str, dim: int = 6):
    z = torch.randn(8, dim, generator=torch.Generator().manual_seed(1))
    return nn.functional.normalize(z, dim=1), explain(
        CRITERIA[name], z, LABELS, generator=torch.Generator().manual_seed(2)
    )


@pytest.mark.parametrize("name", CRITERIA)
def test_the_distance_from_the_anchor_is_the_true_angle(name):
    z, found = explained(name)
    view = view_from(found, 3)
    others = [row for row in range(8) if row not in (2, 3)]
    expected = torch.arccos(z[others] @ z[3]).sort().values
    torch.testing.assert_close(view.negatives.norm(dim=1).sort().values, expected)
    torch.testing.assert_close(view.positives.norm(dim=1), torch.arccos(z[2:3] @ z[3]))
    for kind in view.kinds:
        torch.testing.assert_close(kind.mixtures.norm(dim=1), torch.arccos(kind.similarity), rtol=1e-4, atol=1e-4)


def test_two_dimensions_have_one_direction():
    _, found = explained("mochi", dim=2)
    assert view_from(found, 0).negatives[:, 1].abs().max() < 1e-5


def test_an_anchor_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="`anchor` must be a row of the batch, 0 to 7. Got 8."):
        view_from(explained("mochi")[1], 8)


def test_the_anchors_that_are_moved_most_come_first():
    _, found = explained("mochi")
    sums = sum(share.sum(dim=1) for share in found.gradients)
    assert most_moved(found, 3) == sums.argsort(descending=True)[:3].tolist()


def test_the_table_says_of_each_mixture_what_it_is(tmp_path):
    z, found = explained("mochi")
    header, rows = mixtures_table(found, [0, 5], names=["a", "b", "c", "d"])
    write_csv(tmp_path / "mixtures.csv", header, rows)
    with open(tmp_path / "mixtures.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == 2 * 8
    for row in read:
        parents = [z[int(row[name])] for name in ("row", "row 2")]
        built = float(row["share"]) * parents[0] + float(row["share 2"]) * parents[1]
        assert float(row["mixture's similarity"]) == pytest.approx(float(built @ z[int(row["anchor"])]), abs=1e-3)
        assert float(row["similarity"]) == pytest.approx(float(parents[0] @ z[int(row["anchor"])]), abs=1e-3)
        assert row["class"] == "abcd"[LABELS[int(row["anchor"])]]
        assert row["class 3"] == "abcd"[LABELS[int(row["row 2"])]]
    carried = [float(row["of the gradient"]) for row in read[:8]]
    assert carried == sorted(carried, reverse=True)


def test_kinds_are_counted_against_each_anchors_hardest_negative():
    z, found = explained("mochi")
    table = (z @ z.T).masked_fill(LABELS[:, None] == LABELS, -2)
    hardest = table.max(dim=1).values
    _, rows = kinds_table(found)
    for row, kind in zip(rows, found.kinds, strict=True):
        above = sum(
            float(kind.similarity[a, m]) > float(hardest[a]) for a in range(8) for m in range(kind.similarity.shape[1])
        )
        assert row[3] == f"{above / kind.similarity.numel():.1%}" and row[4] == "0.0%"


@pytest.mark.parametrize("name", CRITERIA)
def test_pictures_are_written_for_papers(name, tmp_path):
    _, found = explained(name)
    paths = write_picture(found, [0, 5], tmp_path / "sphere", ["a", "\U0001f6e1", "c", "d"])
    assert [path.name for path in paths] == ["sphere.png", "sphere.svg"]
    assert paths[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and "around anchor 0, a" in paths[1].read_text()


def towers():
    z = nn.functional.normalize(torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(3)), dim=2)
    labels = torch.stack([torch.arange(8), torch.arange(8).flip(0)], dim=1)
    criterion = GeodesicMixup(ClipLoss())
    return *z, explain(criterion, *z, torch.tensor(20.0), classes=labels, generator=torch.Generator().manual_seed(2))


def test_texts_are_anchors_of_their_own_mixtures(tmp_path):
    image, text, found = towers()
    views, left_out = views_of(found, [3, 5])
    assert [view.of for view in views] == ["image", "text"] and [view.label for view in views] == [4, 4]
    assert [[kind.name for kind in view.kinds] for view in views] == [["m2-Mix", "L-Mix"], ["V-Mix"]]
    others = [row for row in range(8) if row != 3]
    expected = torch.arccos(image[others] @ text[3]).sort().values
    torch.testing.assert_close(views[1].negatives.norm(dim=1).sort().values, expected)
    (mixed,) = views[1].kinds
    torch.testing.assert_close(mixed.mixtures.norm(dim=1), torch.arccos(mixed.similarity), rtol=1e-4, atol=1e-4)
    (kind, share), = left_out
    assert kind == "VL-Mix" and share == pytest.approx(float(found.gradients[3].sum()))
    drawn = write_picture(found, [3, 5], tmp_path / "sphere", list("abcdefgh"))[1].read_text()
    assert "around image 3, e" in drawn and "around text 3, e" in drawn
    assert f"not drawn, as its anchors are others: VL-Mix, {share:.0%} of the gradient" in drawn
    _, rows = mixtures_table(found, [3], list("abcdefgh"))
    assert {row[1] for row in rows} == {"e", ""}


def test_a_way_back_is_of_two_towers():
    with pytest.raises(ValueError, match="read both ways has a way back. Got MoCHi"):
        view_from(explained("mochi")[1], 0, back=True)


def test_views_without_classes_have_a_picture_too(tmp_path):
    criterion = MoCHi(InfoNCE(), num_hardest=4, num_pair_mixes=3, num_anchor_mixes=0)
    write_picture(explain(criterion, *torch.randn(2, 5, 6)), [1], tmp_path / "sphere")


def test_letters_that_the_font_has_not_are_named():
    assert printable("a\U0001f6e1b") == "a shield b"
