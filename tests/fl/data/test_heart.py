import csv
from collections import Counter

import numpy as np
import pytest

from fl.data import load_csv, load_heart, load_schema
from fl.data.heart import HEART_FOLDER

# Rows and patients with disease by hospital, counted from UCI's four files less the two duplicates.
COUNTS = {"cleveland": (303, 139), "hungary": (293, 106), "switzerland": (123, 115), "va_long_beach": (199, 148)}


@pytest.fixture(scope="module")
def heart():
    """The four hospitals."""
    return load_heart()


@pytest.fixture(scope="module")
def rows():
    """The shipped table, cells as text."""
    with (HEART_FOLDER / "heart.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_four_hospitals_in_fixed_order(heart):
    """The hospitals come in the promised order with the known counts, types and width."""
    assert list(heart) == list(COUNTS)
    assert {name: (len(site.y), int(site.y.sum())) for name, site in heart.items()} == COUNTS
    for name, site in heart.items():
        assert site.name == name
        assert site.x.shape == (len(site.y), 32)
        assert (site.x.dtype, site.y.dtype) == (np.float32, np.int32)
        assert site.features == load_schema(HEART_FOLDER / "schema.toml").features
        assert np.abs(site.x).max() <= 1
    assert len({site.fingerprint for site in heart.values()}) == 4


def test_flaws_are_mended_in_the_shipped_table(rows):
    """Row 304 is Hungary's, no two rows agree in all but the id, no zero stands for missing."""
    assert len(rows) == 918
    assert {row["id"]: row["dataset"] for row in rows}["304"] == "Hungary"
    assert {"406", "908"}.isdisjoint(row["id"] for row in rows)
    assert max(Counter(tuple(cell for name, cell in row.items() if name != "id") for row in rows).values()) == 1
    assert not any(row[column] in {"0", "0.0"} for row in rows for column in ("chol", "trestbps"))


def test_known_rows_are_encoded_by_hand(heart):
    """Row 1 (complete) and the last row (five measurements missing) give the features worked out by hand."""
    features = heart["cleveland"].features
    first = dict(zip(features, heart["cleveland"].x[0].tolist(), strict=True))
    assert first["age"] == pytest.approx((63 - 50) / 30)
    assert first["trestbps"] == pytest.approx((145 - 140) / 60)
    assert first["chol"] == pytest.approx((233 - 250) / 150)
    assert first["oldpeak"] == pytest.approx((2.3 - 2) / 2)
    assert first["ca"] == -1
    on = {name for name, value in first.items() if value == 1}
    assert on == {"sex", "cp=typical angina", "fbs", "restecg=lv hypertrophy", "slope=downsloping", "thal=fixed defect"}
    last = dict(zip(features, heart["va_long_beach"].x[-2].tolist(), strict=True))
    missing = {name.removesuffix(":missing") for name, value in last.items() if name.endswith(":missing") and value}
    assert missing == {"trestbps", "thalch", "exang", "oldpeak", "slope", "ca", "thal"}
    assert last["oldpeak"] == last["slope=flat"] == last["thal=normal"] == 0


def test_encoding_does_not_depend_on_other_hospitals(heart, rows, tmp_path):
    """A hospital's rows alone, read from its own file, give the same data set as out of the joint table (F16)."""
    own = [row for row in rows if row["dataset"] == "Hungary"]
    path = tmp_path / "budapest.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(own[0]))
        writer.writeheader()
        writer.writerows(own)
    alone = load_csv(path, load_schema(HEART_FOLDER / "schema.toml"))
    assert alone.name == "budapest"
    assert np.array_equal(alone.x, heart["hungary"].x)
    assert alone.fingerprint == heart["hungary"].fingerprint


def test_features_carry_the_known_signal(heart):
    """Logistic regression on the encoded features reaches the known pooled 5-fold AUC; shuffled labels do not."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    x = np.concatenate([site.x for site in heart.values()])
    y = np.concatenate([site.y for site in heart.values()])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    model = LogisticRegression(max_iter=500)
    assert cross_val_score(model, x, y, cv=folds, scoring="roc_auc").mean() > 0.87
    shuffled = np.random.default_rng(0).permutation(y)
    assert cross_val_score(model, x, shuffled, cv=folds, scoring="roc_auc").mean() < 0.6
